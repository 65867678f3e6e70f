-- Caller: the monitor, for a jobset it does not know: machine time used since $2.
-- Index: BuildSteps(stopTime desc), Builds primary key.
select s.startTime, (s.stopTime - s.startTime)
from BuildSteps s join Builds b on s.build = b.id
where s.startTime is not null and s.stopTime > $2 and s.stopTime >= s.startTime and b.jobset_id = $1
