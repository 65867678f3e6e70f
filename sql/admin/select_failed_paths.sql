-- Caller: clear-failed. Each recorded failure with the end of the newest step that failed with that output (D16); null
-- if there is none. $1: only these paths, or null for all. Index: BuildStepOutputs(path), BuildSteps by primary key.
select f.path,
       (select max(s.stopTime)::bigint from BuildStepOutputs o join BuildSteps s on s.build = o.build and s.stepnr = o.stepnr
        where o.path = f.path and s.status in (1, 12))
from FailedPaths f where $1::text[] is null or f.path = any($1) order by f.path
