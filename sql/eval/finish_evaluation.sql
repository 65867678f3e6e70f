-- Caller: db/evaluations.rs, last in the transaction of an evaluation. Rows: one jobset. Says whether the error is another than before.
-- What was asked for after the evaluation began ($4) stays asked for. Locks: NO KEY UPDATE on it. Index: Jobsets_id_unique.
with old as (select id, errorMsg from Jobsets where id = $1 for no key update)
update Jobsets j
   set errorMsg = $2, errorTime = $3, fetchErrorMsg = null, lastCheckedTime = $3,
       forceEval = case when j.triggerTime > $4 then j.forceEval end,
       enabled = case j.enabled when 2 then 0 else j.enabled end
  from old where j.id = old.id
returning old.errorMsg is distinct from $2
