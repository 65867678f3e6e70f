-- Caller: the writer, last in a transaction: the notifications of all its records, in their order. What hydrad's notifier
-- wants to hear of gets its row of the ledger in the same transaction, as long as there is a notifier (or was within a week).
-- Rows: one a notification, of hydrad.events. Locks: none that others wait for. Index: none.
with written as (
    insert into hydrad.events (channel, payload, backend, at)
    select u.channel, u.payload, pg_backend_pid(), extract(epoch from now())::bigint
      from unnest($1::text[], $2::text[]) with ordinality as u (channel, payload, n), hydrad.notifier r
     where u.channel = any(r.channels) and r.seen_at > extract(epoch from now()) - 604800
     order by u.n)
select pg_notify(u.channel, u.payload)
from unnest($1::text[], $2::text[]) with ordinality as u (channel, payload, n) order by u.n
