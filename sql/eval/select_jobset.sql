-- Caller: db/evaluations.rs, at the start of an evaluation. Rows: one jobset and its project. Locks: none. Index: primary keys.
select j.id, j.nixExprInput, j.nixExprPath, j.flake, coalesce(j.forceEval, false), p.declfile, p.decltype, p.declvalue
  from Jobsets j join Projects p on p.name = j.project
 where j.project = $1 and j.name = $2
