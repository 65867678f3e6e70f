-- Caller: `hydrad simulate --from-database`, for how long builds take: the newest successes. Index: BuildSteps(stopTime desc).
select s.drvPath, coalesce(s.system, ''), s.stopTime - s.startTime + coalesce(s.overhead, 0) / 1000
from BuildSteps s
where s.startTime is not null and s.stopTime is not null and s.stopTime >= s.startTime
  and s.status = 0 and s.busy = 0 and s.type = 0 and s.drvPath is not null
order by s.stopTime desc
limit $1
