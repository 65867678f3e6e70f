-- Caller: db/evaluations.rs, after the commit of an evaluation and before the next. Rows: its builds that are not current yet.
-- Locks: none. Index: IndexJobsetEvalMembersOnEval, primary key.
select b.id from JobsetEvalMembers m join Builds b on b.id = m.build
 where m.eval = $1 and b.isCurrent is distinct from 1
 order by b.id
