-- Caller: update-gc-roots. Primary key of BuildOutputs.
select build, path from BuildOutputs where build = any($1) and path is not null
