-- Caller: build show. Index: primary key.
select b.id, j.project || ':' || j.name || ':' || b.job, b.drvPath, b.system, b.finished, b.buildStatus, b.timestamp,
       b.startTime, b.stopTime, coalesce(b.isCachedBuild, 0), b.globalPriority, b.priority, b.maxsilent, b.timeout,
       b.size, b.closureSize, b.releaseName, b.notificationPendingSince, b.nixName
from Builds b join Jobsets j on j.id = b.jobset_id where b.id = $1
