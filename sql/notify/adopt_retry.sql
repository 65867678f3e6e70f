-- A row of Hydra's becomes an event and a delivery of ours; one that was due before $8 is held.
-- Caller: db/ledger.rs. Rows: one of each. Locks: none. Index: none.
with e as (
    insert into hydrad.events (channel, payload, at, state)
    values ($1, $2, $3, case when $6::bigint < $8::bigint then 'held' else 'planned' end) returning id)
insert into hydrad.deliveries (event, target, attempts, due_at, last_error, retry_row)
select e.id, $4, $5, $6, 'failed in Hydra''s own notifier', $7 from e
