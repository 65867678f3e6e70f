-- Caller: the writer, first in every transaction. Rows touched: none. Locks: none.
-- Sets the lock timeout ($4) and whether the commit waits for the disk ($5) for this transaction, and says
-- whether the session that holds our service's advisory lock (backend $1) still holds it (class $2, object $3).
select set_config('lock_timeout', $4, true), set_config('synchronous_commit', $5, true),
       exists (select 1 from pg_locks
               where locktype = 'advisory' and pid = $1 and granted
                 and classid::bigint = $2 and objid::bigint = $3
                 and database = (select oid from pg_database where datname = current_database()))
