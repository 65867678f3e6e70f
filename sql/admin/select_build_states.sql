-- Caller: enqueue --wait. Index: primary key.
select id, job, case when finished = 1 then buildStatus end, startTime, stopTime, coalesce(isCachedBuild, 0) = 1
from Builds where id = any($1) order by id
