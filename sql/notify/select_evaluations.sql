-- The newest evaluations that a build is a member of.
-- Caller: db/facts.rs. Rows: reads up to $2. Locks: none. Index: IndexJobsetEvalMembersOnBuild, primary key.
select e.id, e.flake
  from JobsetEvalMembers m join JobsetEvals e on e.id = m.eval
 where m.build = $1 order by e.id desc limit $2
