-- Caller: the writer, last in a transaction: the notifications of all its records, in their order.
select pg_notify(u.channel, u.payload)
from unnest($1::text[], $2::text[]) with ordinality as u (channel, payload, n) order by u.n
