-- Caller: explain. Rows: reads one of Builds. Locks: none. Index: primary keys.
select b.id, j.project || ':' || j.name || ':' || b.job, b.drvPath, b.finished = 1, b.buildStatus,
       b.timestamp, b.startTime, b.stopTime, coalesce(b.isCachedBuild, 0) = 1, b.globalPriority, b.priority
from Builds b join Jobsets j on j.id = b.jobset_id
where b.id = $1
