-- Events whose deliveries all ended before $1, or, if one was given up, before $2; not those whose builds are still marked, which
-- would be taken for news.
-- Caller: db/ledger.rs, once an hour. Rows: up to 10000. Locks: these. Index: primary keys.
delete from hydrad.events where id in (
    select e.id from hydrad.events e
     where e.state = 'planned' and e.at < $1
       and not exists (select 1 from hydrad.deliveries d
                        where d.event = e.id
                          and (d.state = 'waiting' or d.done_at >= $1 or d.state = 'given_up' and d.done_at >= $2))
       and not exists (select 1 from Builds b
                        where b.id = any(e.builds) and e.channel = 'build_finished' and b.notificationPendingSince <= e.pending_upto)
     order by e.id limit 10000)
