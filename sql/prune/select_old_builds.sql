-- The next builds after $2 that ended before $1, are neither kept nor in the newest evaluation, have been told of, and have steps.
-- Caller: db/prune.rs. Rows: up to $3. Locks: none. Index: primary keys of Builds and BuildSteps.
select b.id
  from Builds b
 where b.finished = 1 and b.stopTime < $1 and b.id > $2
   and b.keep = 0 and coalesce(b.isCurrent, 0) = 0 and b.notificationPendingSince is null
   and exists (select 1 from BuildSteps s where s.build = b.id)
 order by b.id
 limit $3
