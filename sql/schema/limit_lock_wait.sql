-- An upgrade that waits for a table makes everybody else wait behind it: give up after 10 s.
-- Caller: db/schema.rs. Rows: none. Locks: none. Index: none.
set local lock_timeout = '10s'
