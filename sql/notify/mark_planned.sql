-- These events have their deliveries now.
-- Caller: db/ledger.rs. Rows: $1. Locks: these. Index: primary keys.
update hydrad.events e
   set state = 'planned',
       pending_upto = case when e.channel = 'build_finished'
                           then (select max(b.notificationPendingSince) from Builds b where b.id = any(e.builds)) end
 where e.id = any($1) and e.state = 'new'
