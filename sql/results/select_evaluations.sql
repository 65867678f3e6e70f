-- Caller: eval: $1 one evaluation, or null; else the newest of the jobset $2, $3; $4: also those that changed nothing; at most
-- $5. Index: primary keys, JobsetEvals(jobset_id, id desc) where hasNewBuilds = 1, JobsetEvalMembers(eval).
select e.id, j.project, j.name, e.timestamp, e.checkoutTime, e.evalTime, e.hasNewBuilds <> 0, e.flake, e.nixExprInput,
       e.nixExprPath, r.errorMsg, c.*
from (select v.* from JobsetEvals v join Jobsets w on w.id = v.jobset_id
      where ($1::int is null or v.id = $1) and ($2::text is null or w.project = $2) and ($3::text is null or w.name = $3)
        and ($4 or v.hasNewBuilds = 1) order by v.id desc limit $5) e
join Jobsets j on j.id = e.jobset_id
left join EvaluationErrors r on r.id = e.evaluationerror_id
cross join lateral (
    select count(*), count(*) filter (where m.isNew <> 0), count(*) filter (where b.finished = 1 and b.buildStatus = 0),
           count(*) filter (where b.finished = 1 and b.buildStatus <> 0), count(*) filter (where b.finished = 0)
    from JobsetEvalMembers m join Builds b on b.id = m.build where m.eval = e.id) c
order by e.id desc
