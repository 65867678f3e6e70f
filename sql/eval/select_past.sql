-- Caller: db/evaluations.rs, after the commit of an evaluation and before the next. Rows: builds that are current and not in it.
-- Locks: none. Index: IndexBuildsJobsetIdCurrent, primary key of JobsetEvalMembers.
select b.id from Builds b
 where b.jobset_id = $2 and b.isCurrent = 1
   and not exists (select 1 from JobsetEvalMembers m where m.eval = $1 and m.build = b.id)
 order by b.id
