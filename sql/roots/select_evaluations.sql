-- Caller: update-gc-roots, for each jobset ($1). Its evaluations with unfinished builds, and the $2 newest complete ones.
-- Indexes: (jobset_id, job, finished, id desc) of Builds; (build) and (eval) of JobsetEvalMembers; (jobset_id, id desc) of
-- JobsetEvals.
select distinct m.eval from Builds b join JobsetEvalMembers m on m.build = b.id
where b.finished = 0 and b.jobset_id = $1
union
(select e.id from JobsetEvals e
 where e.jobset_id = $1 and e.hasNewBuilds = 1
   and not exists (select from JobsetEvalMembers m join Builds b on b.id = m.build where m.eval = e.id and b.finished = 0)
 order by e.id desc limit $2)
