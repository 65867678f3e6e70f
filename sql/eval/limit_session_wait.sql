-- Caller: db/evaluations.rs, for a new session. Rows: none. From here on no lock is waited for longer than this ($1), and the server
-- (from PostgreSQL 14 on) sees within a few seconds that we are gone, also while it waits for a lock.
select set_config('lock_timeout', $1, false),
       (select set_config(name, '5s', false) from pg_settings where name = 'client_connection_check_interval')
