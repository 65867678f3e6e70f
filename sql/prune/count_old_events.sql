-- How many events of the ledger sql/notify/delete_old_events.sql would delete, with their deliveries.
-- Caller: db/prune.rs. Rows: the ledger, all read. Locks: none. Index: primary keys.
select count(*),
       coalesce(sum((select count(*) from hydrad.deliveries d where d.event = e.id)), 0)::bigint
  from hydrad.events e
 where e.state = 'planned' and e.at < $1
   and not exists (select 1 from hydrad.deliveries d
                    where d.event = e.id
                      and (d.state = 'waiting' or d.done_at >= $1 or d.state = 'given_up' and d.done_at >= $2))
   and not exists (select 1 from Builds b
                    where b.id = any(e.builds) and e.channel = 'build_finished' and b.notificationPendingSince <= e.pending_upto)
