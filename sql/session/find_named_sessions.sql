-- Other sessions on this database whose program calls itself $1.
-- Caller: db/locks.rs, at start and in `hydrad check`. Rows: none (reads pg_stat_activity).
-- Locks: none. Index: none.
select pid,
       coalesce(application_name, ''),
       coalesce(usename::text, ''),
       coalesce(host(client_addr), ''),
       coalesce(extract(epoch from now() - backend_start), 0)::bigint
  from pg_stat_activity
 where datname = current_database()
   and application_name = $1
   and pid <> pg_backend_pid()
 order by pid
