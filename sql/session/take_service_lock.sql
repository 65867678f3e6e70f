-- Takes the advisory lock of a service for the life of this session; true if it was free.
-- Caller: db/locks.rs. Rows: none. Locks: advisory ($1, $2), session level. Index: none.
select pg_try_advisory_lock($1::int, $2::int)
