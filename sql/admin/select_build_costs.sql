-- Caller: queue. What builds of each jobset and system cost since $1: how many were built, and the machine time of all
-- steps that were run for them. Index: BuildSteps(stopTime), Builds by primary key.
select b.jobset_id, b.system, count(distinct b.id), sum(s.stopTime - s.startTime)::bigint
from BuildSteps s join Builds b on b.id = s.build
where s.startTime is not null and s.stopTime is not null and s.stopTime > $1 and s.type = 0 and s.busy = 0
  and s.propagatedFrom is null and b.finished = 1 and coalesce(b.isCachedBuild, 0) = 0
group by b.jobset_id, b.system
