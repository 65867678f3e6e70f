-- Deliveries that wait or were given up are dropped, and with them what Hydra's own notifier would try.
-- Caller: db/ledger.rs, for `hydrad notifications discard`. Rows: the pairs of $1 and $2, their rows of TaskRetries.
-- Locks: these. Index: primary keys.
with dropped as (
    update hydrad.deliveries d set state = 'discarded', done_at = $3
      from unnest($1::bigint[], $2::text[]) as u (event, target)
     where d.event = u.event and d.target = u.target and d.state in ('waiting', 'given_up')
    returning d.retry_row)
delete from TaskRetries t using dropped where t.id = dropped.retry_row
