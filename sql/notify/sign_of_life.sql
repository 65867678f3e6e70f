-- That a notifier is at work, and what it wants to hear of ($2).
-- Caller: db/ledger.rs, first of all and once a minute. Rows: the one of hydrad.notifier. Locks: that row. Index: primary key.
insert into hydrad.notifier (seen_at, channels) values ($1, $2)
on conflict (one) do update set seen_at = excluded.seen_at, channels = excluded.channels
