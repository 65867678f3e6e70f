-- Caller: db/evaluator.rs, for a jobset that is evaluated one at a time. Rows: reads JobsetEvals, JobsetEvalMembers, Builds.
-- Locks: none. Index: IndexJobsetEvalsOnJobsetId, IndexJobsetEvalMembersOnEval, the key of Builds.
-- Unfinished builds of the newest evaluation that changed anything: one that changed nothing has no members.
select count(*)
from JobsetEvalMembers m join Builds b on b.id = m.build
where b.finished = 0
  and m.eval = (select id from JobsetEvals where jobset_id = $1 and hasNewBuilds = 1 order by id desc limit 1)
