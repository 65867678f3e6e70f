-- Nothing is left to be tried again.
-- Caller: db/ledger.rs, with the outcome. Rows: $1 of TaskRetries. Locks: these. Index: primary key.
delete from TaskRetries where id = any($1)
