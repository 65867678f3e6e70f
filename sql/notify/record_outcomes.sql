-- What became of deliveries; only of those that nobody has decided about meanwhile.
-- Caller: db/ledger.rs, for a batch. Rows: one each. Locks: these. Index: primary key.
update hydrad.deliveries d
   set state = u.state, attempts = u.attempts, due_at = u.due_at, last_error = u.error, done_at = u.done_at
  from unnest($1::bigint[], $2::text[], $3::text[], $4::integer[], $5::bigint[], $6::text[], $7::bigint[])
       as u (event, target, state, attempts, due_at, error, done_at)
 where d.event = u.event and d.target = u.target and d.state = 'waiting'
returning d.event, d.target, d.state, d.attempts, d.due_at, d.retry_row
