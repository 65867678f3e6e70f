-- Caller: project and jobset delete: what goes with these jobsets. Index: Builds by jobset, partial busy <> 0.
select (select count(*) from JobsetEvals where jobset_id = any($1)),
       count(*), count(*) filter (where b.finished = 0), count(*) filter (where b.keep = 1),
       (select count(*) from BuildSteps s join Builds r on r.id = s.build where s.busy <> 0 and r.jobset_id = any($1))
from Builds b where b.jobset_id = any($1)
