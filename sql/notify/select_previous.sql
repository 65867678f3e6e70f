-- The last build of the same job that ended, before this one.
-- Caller: db/facts.rs. Rows: reads one. Locks: none. Index: IndexBuildsOnJobsetIdFinishedId or that of jobs.
select b.id, b.buildStatus
  from Builds a join Builds b on b.jobset_id = a.jobset_id and b.job = a.job and b.system = a.system
 where a.id = $1 and b.id < a.id and b.finished = 1 and b.buildStatus not in (3, 4)
 order by b.id desc limit 1
