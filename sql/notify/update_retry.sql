-- Another try that failed.
-- Caller: db/ledger.rs, with the outcome. Rows: one of TaskRetries. Locks: that row. Index: primary key.
update TaskRetries set attempts = $2, retry_at = $3 where id = $1
