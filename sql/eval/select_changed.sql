-- Caller: db/evaluations.rs. Rows: the newest evaluation of a jobset that changed its builds. Locks: none.
-- Index: IndexJobsetEvalsOnJobsetId.
select id from JobsetEvals where jobset_id = $1 and hasNewBuilds = 1 order by id desc limit 1
