-- What has waited since before $1 is held: an operator decides.
-- Caller: db/ledger.rs, when a notifier becomes the active one. Rows: the old ones. Locks: these. Index: events_open,
-- deliveries_waiting.
update hydrad.events e set state = 'held'
 where e.at < $1
   and (e.state = 'new'
        or e.state = 'planned' and e.id in (select d.event from hydrad.deliveries d where d.state = 'waiting'))
