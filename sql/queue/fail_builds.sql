-- Caller: the writer, on rows locked before. Rows: one a build. Index: primary key.
update Builds b
set finished = 1, buildStatus = u.buildStatus, startTime = u.startTime, stopTime = u.stopTime,
    isCachedBuild = u.isCachedBuild, notificationPendingSince = u.pendingSince
from unnest($1::int[], $2::int[], $3::int[], $4::int[], $5::int[], $6::int[])
     as u (id, buildStatus, startTime, stopTime, isCachedBuild, pendingSince)
where b.id = u.id and b.finished = 0
