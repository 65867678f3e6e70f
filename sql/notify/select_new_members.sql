-- Those of $1 that some evaluation made.
-- Caller: db/facts.rs. Rows: reads a few of JobsetEvalMembers. Locks: none. Index: IndexJobsetEvalMembersOnBuild.
select distinct m.build from JobsetEvalMembers m where m.build = any($1) and m.isNew = 1
