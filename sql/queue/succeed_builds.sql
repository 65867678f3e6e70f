-- Caller: the writer, on rows locked before. Rows: one a build. Index: primary key.
update Builds b
set finished = 1, buildStatus = u.buildStatus, startTime = u.startTime, stopTime = u.stopTime,
    size = u.size, closureSize = u.closureSize, releaseName = u.releaseName,
    isCachedBuild = u.isCachedBuild, notificationPendingSince = u.stopTime
from unnest($1::int[], $2::int[], $3::int[], $4::int[], $5::bigint[], $6::bigint[], $7::int[], $8::text[])
     as u (id, buildStatus, startTime, stopTime, size, closureSize, isCachedBuild, releaseName)
where b.id = u.id and b.finished = 0
