-- Schema 82 to 83: old installations have two indexes on BuildOutputs.path; one goes.
-- Caller: db/schema.rs. Rows touched: none. Locks: BuildOutputs exclusively, briefly. Index used: none.
drop index if exists IndexBuildOutputsOnPath;
