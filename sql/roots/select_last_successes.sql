-- Caller: update-gc-roots, for each jobset ($2). The newest success of each job that occurs in some evaluations ($1).
-- Indexes: (eval) of JobsetEvalMembers; (jobset_id, job, finished, id desc) of Builds.
select last.id, last.drvPath, last.finished, last.buildStatus, jobs.job
from (select distinct b.job from JobsetEvalMembers m join Builds b on b.id = m.build where m.eval = any($1)) jobs
cross join lateral
    (select b.id, b.drvPath, b.finished, b.buildStatus from Builds b
     where b.jobset_id = $2 and b.job = jobs.job and b.finished = 1 and b.buildStatus in (0, 6)
     order by b.id desc limit 1) last
order by last.id
