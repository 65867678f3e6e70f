-- What failed once is written where Hydra's own notifier looks, and the delivery remembers the row. Events that Hydra does not know
-- are not: its notifier would stumble over them.
-- Caller: db/ledger.rs, with the outcome. Rows: one of TaskRetries, one of deliveries. Locks: these. Index: primary key.
with row as (
    insert into TaskRetries (channel, pluginname, payload, attempts, retry_at)
    select e.channel, $3, e.payload, $4, $5 from hydrad.events e where e.id = $1 and e.channel not in ('eval_error_changed', 'eval_finished')
    returning id)
update hydrad.deliveries d set retry_row = row.id from row where d.event = $1 and d.target = $2
