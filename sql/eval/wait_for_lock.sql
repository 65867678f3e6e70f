-- Caller: db/evaluations.rs. The lock of a jobset's evaluation, for the life of the session; waits up to lock_timeout.
-- Rows: none. Locks: advisory ($1, $2), session level. Index: none.
select pg_advisory_lock($1::int, $2::int)
