-- Caller: build restart. Rows: the evaluations' number of successes, which Hydra's web server counts anew when it is
-- null. Index: IndexJobsetEvalMembersOnBuild, primary key.
update JobsetEvals set nrSucceeded = null
where id in (select eval from JobsetEvalMembers where build = any($1)) and nrSucceeded is not null
