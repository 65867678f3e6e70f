-- Leaves a mark in the session and tells which backend it is. Through a proxy that shares
-- sessions, another client finds the mark, or this client loses it.
-- Caller: db/locks.rs (detection of proxies). Rows: none. Locks: none. Index: none.
select pg_backend_pid(), set_config('hydrad.mark', $1, false)
