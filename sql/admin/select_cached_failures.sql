-- Caller: explain. A derivation's outputs that count as failed. Rows: reads BuildSteps, BuildStepOutputs, FailedPaths.
-- Locks: none. Index: BuildSteps (drvPath), primary keys.
select distinct o.path
from BuildSteps s
join BuildStepOutputs o on o.build = s.build and o.stepnr = s.stepnr
join FailedPaths f on f.path = o.path
where s.drvPath = $1
order by 1 limit 20
