-- What there is to know of a build that may define the jobsets of its project, with the path of its first output.
-- Caller: db/facts.rs. Rows: reads one build. Locks: none. Index: primary keys.
select j.project, j.name, j.id, b.job, coalesce(p.declfile, '') <> '', coalesce(b.isCurrent, 0) <> 0,
       (select o.path from BuildOutputs o where o.build = b.id order by (o.name <> 'out'), o.name limit 1)
  from Builds b join Jobsets j on j.id = b.jobset_id join Projects p on p.name = j.project where b.id = $1
