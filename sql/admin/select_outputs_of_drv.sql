-- Caller: clear-failed, for a derivation. Index: BuildSteps(drvPath), Builds(drvPath), primary keys.
select o.path from BuildSteps s join BuildStepOutputs o on o.build = s.build and o.stepnr = s.stepnr
where s.drvPath = $1 and o.path is not null
union
select o.path from Builds b join BuildOutputs o on o.build = b.id where b.drvPath = $1 and o.path is not null
