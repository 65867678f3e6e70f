-- Caller: db/evaluations.rs, when nothing changed. Rows: one jobset. An error that a later, failed try left is replaced by what the
-- evaluation had said that stays in force ($2, at $3; null if that is not known). Index: Jobsets_id_unique.
update Jobsets
   set lastCheckedTime = $4, fetchErrorMsg = null,
       errorTime = case when coalesce(errorMsg, '') <> $2::text then $3 else errorTime end,
       errorMsg = case when coalesce(errorMsg, '') <> $2::text then $2 else errorMsg end
 where id = $1
