-- A build as plugins tell of it.
-- Caller: db/facts.rs. Rows: reads one build. Locks: none. Index: primary keys.
select b.id, b.finished, b.timestamp, j.project, j.name, b.job, b.drvPath, b.startTime, b.stopTime, b.buildStatus,
       b.nixName, b.system, b.homepage, b.description, b.license, j.id, b.isCachedBuild, b.size, b.closureSize,
       j.enableEmail, j.emailOverride, b.maintainers
  from Builds b join Jobsets j on j.id = b.jobset_id where b.id = $1
