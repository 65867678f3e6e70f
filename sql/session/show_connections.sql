-- How many connections the server allows, keeps for superusers and has now, and its version.
-- Caller: admin/check.rs by way of db/locks.rs. Rows: none (reads pg_stat_activity). Locks: none. Index: none.
select current_setting('max_connections')::int,
       current_setting('superuser_reserved_connections')::int,
       (select count(*) from pg_stat_activity where backend_type = 'client backend')::int,
       current_setting('server_version')
