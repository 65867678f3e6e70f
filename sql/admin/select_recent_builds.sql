-- Caller: status. Index: (finished, stopTime desc).
select b.id, j.project || ':' || j.name || ':' || b.job, b.buildStatus, b.startTime, b.stopTime,
       (select s.machine from BuildSteps s where s.build = b.id and s.drvPath = b.drvPath order by s.stepnr desc limit 1)
from Builds b join Jobsets j on j.id = b.jobset_id
where b.finished = 1 order by b.stopTime desc, b.id desc limit $1
