-- Caller: eval. Index: primary keys, JobsetEvalMembers(eval).
select e.id, j.project, j.name, e.timestamp, e.checkoutTime, e.evalTime, e.hasNewBuilds <> 0, e.flake, e.nixExprInput,
       e.nixExprPath, r.errorMsg, c.*
from JobsetEvals e
join Jobsets j on j.id = e.jobset_id
left join EvaluationErrors r on r.id = e.evaluationerror_id
cross join lateral (
    select count(*), count(*) filter (where m.isNew <> 0), count(*) filter (where b.finished = 1 and b.buildStatus = 0),
           count(*) filter (where b.finished = 1 and b.buildStatus <> 0), count(*) filter (where b.finished = 0)
    from JobsetEvalMembers m join Builds b on b.id = m.build where m.eval = e.id) c
where e.id = $1
