-- The sessions that hold the advisory lock of a service. What belongs to another role is shown
-- without name and address, unless this role may read all statistics.
-- Caller: db/locks.rs. Rows: none (reads pg_locks, pg_stat_activity). Locks: none. Index: none.
select l.pid,
       coalesce(a.application_name, ''),
       coalesce(a.usename::text, ''),
       coalesce(host(a.client_addr), ''),
       coalesce(extract(epoch from now() - a.backend_start), 0)::bigint
  from pg_locks l
  left join pg_stat_activity a on a.pid = l.pid
 where l.locktype = 'advisory'
   and l.database = (select oid from pg_database where datname = current_database())
   and l.classid = $1::int::oid
   and l.objid = $2::int::oid
   and l.objsubid = 2
   and l.granted
 order by l.pid
