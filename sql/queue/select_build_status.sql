-- Caller: the page of one build. One row; index: primary keys.
select b.id, b.drvPath, b.jobset_id, j.project, j.name, b.job, coalesce(b.nixName, ''), b.timestamp,
       coalesce(b.maxsilent, 3600), coalesce(b.timeout, 36000), b.priority, b.globalPriority,
       b.finished <> 0, b.buildStatus, b.startTime, b.stopTime
from Builds b join Jobsets j on j.id = b.jobset_id
where b.id = $1
