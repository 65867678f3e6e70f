-- Events that nobody has planned deliveries for, the oldest first.
-- Caller: db/ledger.rs. Rows: up to $1. Locks: none. Index: events_open.
select id, channel, payload, builds, at from hydrad.events where state = 'new' order by id limit $1
