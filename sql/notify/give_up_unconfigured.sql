-- What waits for a target that is not configured any more is given up, and shown as such.
-- Caller: db/ledger.rs, when a notifier becomes the active one, after a change of hydra.conf and once a minute. Rows: those of targets not in $1. Locks: these.
-- Index: deliveries_waiting.
update hydrad.deliveries d
   set state = 'given_up', done_at = $2, last_error = coalesce(d.last_error || '; ', '') || 'not configured any more'
 where d.state = 'waiting' and d.target <> all($1)
   and exists (select 1 from hydrad.events e where e.id = d.event and e.state = 'planned')
