-- Caller: db/evaluator.rs, after an evaluation has ended at $4. Rows touched: the jobset $1. Locks: that row. Index:
-- Jobsets_id_unique.
-- Clears the trigger that it was started with ($2; null: none), if no other has come; with a message ($3) of what ended it
-- without saying so itself. Says whether that is another one than before.
with old as (select id, errorMsg from Jobsets where id = $1 for no key update)
update Jobsets j
set startTime = null,
    triggerTime = case when triggerTime = $2 then null else triggerTime end,
    errorMsg = coalesce($3, j.errorMsg),
    errorTime = case when $3::text is null then errorTime else $4 end,
    lastCheckedTime = case when $3::text is null then lastCheckedTime else $4 end,
    fetchErrorMsg = case when $3::text is null then fetchErrorMsg end
from old
where j.id = old.id
returning $3::text is not null and old.errorMsg is distinct from $3
