-- Caller: the start of the queue runner. Rows: steps that --unlock ended become busy again, to be settled like others that
-- were left; not if their build has ended or the derivation was tried again meanwhile. Index: primary key,
-- BuildSteps(drvPath).
update BuildSteps s set busy = l.busy, status = null
from hydrad.left_busy l
where s.build = l.build and s.stepnr = l.stepnr and s.busy = 0 and s.status = 3 and s.stopTime is null and s.type = 0
  and exists (select 1 from Builds b where b.id = s.build and b.finished = 0)
  and not exists (select 1 from BuildSteps t where t.drvPath = s.drvPath and t.startTime > s.startTime)
