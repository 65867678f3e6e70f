-- Caller: db/evaluations.rs. Rows: the builds of an evaluation, a row for each output. Locks: none.
-- Index: IndexJobsetEvalMembersOnEval, primary keys.
select b.id, b.job, b.drvPath, b.finished <> 0, b.buildStatus, o.name, o.path
  from JobsetEvalMembers m
  join Builds b on b.id = m.build and b.jobset_id = $2
  left join BuildOutputs o on o.build = b.id
 where m.eval = $1
 order by b.id, o.name
