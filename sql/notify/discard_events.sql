-- Held or new events without anything left to be delivered count as told.
-- Caller: db/ledger.rs, for `hydrad notifications discard`, after its deliveries. Rows: $1. Locks: these. Index: primary keys.
update hydrad.events e
   set state = 'planned', pending_upto = (select max(b.notificationPendingSince) from Builds b where b.id = any(e.builds))
 where e.id = any($1) and e.state <> 'planned'
   and not exists (select 1 from hydrad.deliveries d where d.event = e.id and d.state = 'waiting')
