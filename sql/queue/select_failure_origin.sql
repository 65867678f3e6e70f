-- Caller: the writer, for cached failures: the newest build with a failed step of this derivation or with one
-- of these outputs ($2). Index: BuildSteps(drvPath), BuildStepOutputs(path).
select coalesce(
    (select max(s.build) from BuildSteps s
     where s.drvPath = $1 and s.startTime <> 0 and s.stopTime <> 0 and s.status = 1),
    (select max(s.build) from BuildStepOutputs o join BuildSteps s on s.build = o.build and s.stepnr = o.stepnr
     where o.path = any($2) and s.startTime <> 0 and s.stopTime <> 0 and s.status = 1))
