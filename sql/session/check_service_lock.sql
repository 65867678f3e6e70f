-- Whether this very session holds the advisory lock of a service.
-- Caller: db/locks.rs, before writes after trouble. Rows: none (reads pg_locks). Locks: none. Index: none.
select exists (
    select 1
      from pg_locks
     where locktype = 'advisory'
       and database = (select oid from pg_database where datname = current_database())
       and classid = $1::int::oid
       and objid = $2::int::oid
       and objsubid = 2
       and pid = pg_backend_pid()
       and granted)
