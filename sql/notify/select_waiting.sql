-- What waits to be delivered to a target, the oldest first.
-- Caller: db/ledger.rs, at start and after an overflow. Rows: up to $2. Locks: none. Index: deliveries_waiting.
select e.id, d.target, e.channel, e.payload, e.builds, e.at, d.attempts, d.due_at
  from hydrad.deliveries d join hydrad.events e on e.id = d.event
 where d.target = $1 and d.state = 'waiting' and e.state = 'planned'
 order by e.id limit $2
