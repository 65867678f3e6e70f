-- Caller: db/evaluations.rs. Rows: the newest evaluation of a jobset, whether it changed anything or not, with what was wrong in it.
-- Locks: none. Index: primary key, backwards.
select e.id, e.hash, e.flake, r.errorMsg, r.errorTime
  from JobsetEvals e left join EvaluationErrors r on r.id = e.evaluationerror_id
 where e.jobset_id = $1
 order by e.id desc limit 1
