-- Events that no target wants.
-- Caller: db/ledger.rs, in the transaction that plans deliveries. Rows: $1. Locks: these. Index: primary key.
delete from hydrad.events where id = any($1) and state = 'new'
