-- Deliveries that ended wait again, and their events count as announced now.
-- Caller: db/ledger.rs, for `hydrad notifications replay`. Rows: the pairs of $1 and $2. Locks: these. Index: primary keys.
with again as (
    update hydrad.deliveries d
       set state = 'waiting', attempts = 0, due_at = $3, last_error = null, done_at = null, retry_row = null
      from unnest($1::bigint[], $2::text[]) as u (event, target)
     where d.event = u.event and d.target = u.target and d.state <> 'waiting'
    returning d.event)
update hydrad.events e set at = $3 where e.id in (select event from again)
