-- Caller: build restart. Rows: failures recorded for outputs of the builds and of their steps. Index: BuildOutputs,
-- BuildStepOutputs and FailedPaths by primary key.
delete from FailedPaths where path in (
    select path from BuildOutputs where build = any($1)
    union select path from BuildStepOutputs where build = any($1))
