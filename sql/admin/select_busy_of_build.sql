-- Caller: explain. A build's running steps. Rows: reads BuildSteps. Locks: none. Index: primary key.
select s.build, s.stepnr, s.drvPath, s.busy, s.status, s.errorMsg, s.startTime, s.stopTime, s.machine, s.propagatedFrom
from BuildSteps s
where s.build = $1 and s.busy <> 0
order by s.stepnr limit 20
