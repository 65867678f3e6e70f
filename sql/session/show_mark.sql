-- Which backend this is and which mark the session carries.
-- Caller: db/locks.rs (detection of proxies). Rows: none. Locks: none. Index: none.
select pg_backend_pid(), coalesce(current_setting('hydrad.mark', true), '')
