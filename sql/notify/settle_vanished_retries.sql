-- What Hydra's own notifier has delivered or given up meanwhile need not be delivered by us.
-- Caller: db/ledger.rs, when a notifier becomes the active one. Rows: those whose row of TaskRetries is gone. Locks: these.
-- Index: deliveries_retry.
update hydrad.deliveries d set state = 'delivered', done_at = $1, last_error = 'left to Hydra''s own notifier'
 where d.state = 'waiting' and d.retry_row is not null
   and not exists (select 1 from TaskRetries t where t.id = d.retry_row)
