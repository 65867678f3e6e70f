-- A jobset's error, other than that of an evaluation. Says whether it is another one than before.
-- Caller: db/facts.rs. Rows: one jobset. Locks: that. Index: Jobsets_id_unique.
update Jobsets n set errorMsg = $2, errorTime = $3, fetchErrorMsg = null
  from (select id, errorMsg from Jobsets where id = $1 for update) o
 where n.id = o.id
returning coalesce(o.errorMsg, '') <> $2
