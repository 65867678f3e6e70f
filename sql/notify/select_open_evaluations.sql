-- The newest evaluations of which a new build is unfinished.
-- Caller: db/facts.rs, once after a start while `digest` is set. Rows: reads all unfinished builds. Locks: none.
-- Index: IndexBuildsOnFinished, IndexJobsetEvalMembersOnBuild.
select distinct m.eval from Builds b join JobsetEvalMembers m on m.build = b.id and m.isNew = 1
 where b.finished = 0 order by m.eval desc limit $1
