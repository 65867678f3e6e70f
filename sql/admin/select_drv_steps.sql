-- Caller: explain. The newest attempts of a derivation, whichever build they belong to. Rows: reads BuildSteps. Locks:
-- none. Index: BuildSteps (drvPath).
select s.build, s.stepnr, s.drvPath, s.busy, s.status, s.errorMsg, s.startTime, s.stopTime, s.machine, s.propagatedFrom
from BuildSteps s
where s.drvPath = $1 and s.propagatedFrom is null
order by coalesce(s.startTime, 0) desc, s.build desc, s.stepnr desc limit 20
