-- Caller: db/evaluations.rs. Rows: counts those of an evaluation. Locks: none. Index: IndexJobsetEvalMembersOnEval.
select count(*) from JobsetEvalMembers where eval = $1
