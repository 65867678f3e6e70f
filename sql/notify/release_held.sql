-- Held events are let go; they count as announced now.
-- Caller: db/ledger.rs, for `hydrad notifications replay`. Rows: $1. Locks: these. Index: primary key.
update hydrad.events e
   set at = $2, state = case when exists (select 1 from hydrad.deliveries d where d.event = e.id) then 'planned' else 'new' end
 where e.id = any($1) and e.state = 'held'
