-- Builds whose end is marked as not yet told, and that no event stands for: one event a build. Those marked before $2 are
-- held.
-- Caller: db/ledger.rs, when a notifier becomes the active one or has connected anew. Rows: one an event. Locks: none.
-- Index: IndexBuildsOnNotificationPendingSince, events_builds, primary key of deliveries.
insert into hydrad.events (channel, payload, at, state)
select 'build_finished', b.id::text, $1, case when b.notificationPendingSince < $2::bigint then 'held' else 'new' end
  from Builds b
 where b.notificationPendingSince is not null and b.finished = 1
   and not exists (
       select 1 from hydrad.events e
        where e.channel = 'build_finished' and e.builds @> array[b.id]
          and (e.state <> 'planned' or e.pending_upto >= b.notificationPendingSince
               or exists (select 1 from hydrad.deliveries d
                           where d.event = e.id and d.state = 'waiting' and d.attempts = 0)))
 order by b.notificationPendingSince, b.id
