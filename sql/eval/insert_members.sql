-- Caller: db/evaluations.rs. Rows: the builds of an evaluation. Locks: KEY SHARE on these builds, in the order given (by id), which
-- keeps nobody from finishing them.
insert into JobsetEvalMembers (eval, build, isNew) select $1, u.build, u.isNew from unnest($2::int[], $3::int[]) as u (build, isNew)
