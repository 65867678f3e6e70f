-- Caller: eval list: the newest evaluations of a jobset; $3: also those that changed nothing; at most $4. Index: primary keys,
-- JobsetEvals(jobset_id, id desc) where hasNewBuilds = 1, JobsetEvalMembers(eval).
select e.id, j.project, j.name, e.timestamp, e.checkoutTime, e.evalTime, e.hasNewBuilds <> 0, e.flake, e.nixExprInput,
       e.nixExprPath, r.errorMsg, c.*
from (select v.* from JobsetEvals v join Jobsets w on w.id = v.jobset_id
      where w.project = $1 and w.name = $2 and ($3 or v.hasNewBuilds = 1) order by v.id desc limit $4) e
join Jobsets j on j.id = e.jobset_id
left join EvaluationErrors r on r.id = e.evaluationerror_id
cross join lateral (
    select count(*), count(*) filter (where m.isNew <> 0), count(*) filter (where b.finished = 1 and b.buildStatus = 0),
           count(*) filter (where b.finished = 1 and b.buildStatus <> 0), count(*) filter (where b.finished = 0)
    from JobsetEvalMembers m join Builds b on b.id = m.build where m.eval = e.id) c
order by e.id desc
