-- Caller: db/evaluations.rs, for an evaluation that failed as a whole. Rows: one jobset. Says whether the error is another than before.
-- Locks: NO KEY UPDATE on it. Index: Jobsets_id_unique.
with old as (select id, errorMsg from Jobsets where id = $1 for no key update)
update Jobsets j set errorMsg = $2, errorTime = $3, fetchErrorMsg = null, lastCheckedTime = $3
  from old where j.id = old.id
returning old.errorMsg is distinct from $2
