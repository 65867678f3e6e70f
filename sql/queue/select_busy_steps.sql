-- Caller: the start of the queue runner, for what an ended process left. Index: partial, busy <> 0.
select s.build, s.stepnr, s.drvPath, coalesce(s.startTime, 0), s.machine,
       (select array_agg(o.path) from BuildStepOutputs o where o.build = s.build and o.stepnr = s.stepnr)
from BuildSteps s where s.busy <> 0 order by s.build, s.stepnr
