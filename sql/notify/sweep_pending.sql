-- As clear_pending.sql, for whatever was left over.
-- Caller: db/ledger.rs, once a minute. Rows: few builds. Locks: these, in id order.
-- Index: IndexBuildsOnNotificationPendingSince, events_builds.
with told as (
    select b.id
      from Builds b
     where b.notificationPendingSince is not null and b.finished = 1
       and exists (
           select 1 from hydrad.events e
            where e.channel = 'build_finished' and e.builds @> array[b.id] and e.state = 'planned'
              and b.notificationPendingSince <= e.pending_upto
              and not exists (select 1 from hydrad.deliveries d
                               where d.event = e.id and d.state = 'waiting' and d.attempts = 0))
     order by b.id
       for update of b skip locked)
update Builds b set notificationPendingSince = null from told where b.id = told.id
