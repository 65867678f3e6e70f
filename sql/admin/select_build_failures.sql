-- Caller: explain. The rows of a build's steps that failed, the newest first. Rows: reads BuildSteps. Locks: none.
-- Index: primary key.
select s.build, s.stepnr, s.drvPath, s.busy, s.status, s.errorMsg, s.startTime, s.stopTime, s.machine, s.propagatedFrom
from BuildSteps s
where s.build = $1 and s.busy = 0 and s.status is not null and s.status not in (0, 4, 13)
order by s.stepnr desc limit 20
