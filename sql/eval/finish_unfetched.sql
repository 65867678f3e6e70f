-- Caller: db/evaluations.rs, when an input could not be fetched. Rows: one jobset. Index: Jobsets_id_unique.
update Jobsets set fetchErrorMsg = $2, lastCheckedTime = $3 where id = $1
