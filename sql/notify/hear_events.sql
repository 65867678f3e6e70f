-- Notifications that were heard become events, unless whoever announced them has written the event itself, or each of the builds
-- that ended has an event already (one found at the start, say, before its notification came).
-- Caller: db/ledger.rs, for a batch in the order of hearing. Rows: one an event. Locks: none. Index: events_backend,
-- events_builds, primary key of Builds.
insert into hydrad.events (channel, payload, at)
select u.channel, u.payload, $4
  from unnest($1::text[], $2::text[], $3::integer[]) with ordinality as u (channel, payload, backend, n)
 where not exists (
       select 1 from hydrad.events e
        where e.backend = u.backend and e.channel = u.channel and md5(e.payload) = md5(u.payload) and e.payload = u.payload)
   and (u.channel <> 'build_finished' or exists (
       select 1
         from unnest(case when u.channel = 'build_finished' then string_to_array(u.payload, e'\t')::integer[] end) as p (id)
        where not exists (
              select 1 from Builds b
                join hydrad.events e on e.channel = 'build_finished' and e.builds @> array[b.id]
                     and (e.state <> 'planned' or e.pending_upto >= coalesce(b.notificationPendingSince, b.stopTime))
               where b.id = p.id)))
 order by u.n
