-- Rows that Hydra's notifier left to be tried again and that no delivery stands for.
-- Caller: db/ledger.rs, at start and once a minute. Rows: up to $1 of TaskRetries. Locks: none. Index: deliveries_retry.
select t.id, t.channel, t.pluginname, t.payload, t.attempts, t.retry_at
  from TaskRetries t
 where not exists (select 1 from hydrad.deliveries d where d.retry_row = t.id)
   and t.pluginname = any($2)
 order by t.id limit $1
