-- A delivery for each event and target.
-- Caller: db/ledger.rs, in the transaction that marks the events. Rows: one each. Locks: none. Index: primary key.
insert into hydrad.deliveries (event, target, due_at)
select u.event, u.target, $3 from unnest($1::bigint[], $2::text[]) as u (event, target)
on conflict do nothing
