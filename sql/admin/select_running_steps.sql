-- Caller: status. Index: partial, busy <> 0.
select s.build, s.stepnr, s.busy, coalesce(s.startTime, 0), s.machine, s.drvPath
from BuildSteps s where s.busy <> 0 order by s.startTime, s.build
