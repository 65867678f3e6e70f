-- Caller: the shadow, every second: what is under way, what ended since $1, and what became of the rows ($2, $3) that were
-- under way. Indexes: partial, busy <> 0; BuildSteps(stopTime desc); primary key.
select build, stepnr, drvPath, busy, status, machine, coalesce(startTime, 0) from BuildSteps where busy <> 0
union
select build, stepnr, drvPath, busy, status, machine, coalesce(startTime, 0) from BuildSteps
where startTime is not null and stopTime is not null and stopTime >= $1 and type = 0
union
select s.build, s.stepnr, s.drvPath, s.busy, s.status, s.machine, coalesce(s.startTime, 0)
from unnest($2::int[], $3::int[]) as u (build, stepnr)
join BuildSteps s on s.build = u.build and s.stepnr = u.stepnr
order by 7, 1, 2
