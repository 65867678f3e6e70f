-- An upgrade that waits for a table makes everybody else wait behind it: give way after 2 s.
-- Caller: db/schema.rs. Rows: none. Locks: none. Index: none.
set local lock_timeout = '2s'
