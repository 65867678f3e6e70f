-- A jobset's error, and who owns its project.
-- Caller: db/facts.rs. Rows: reads one of Jobsets, Projects, Users. Locks: none. Index: Jobsets_id_unique, primary keys.
select j.project, j.name, coalesce(j.errorMsg, ''), u.emailAddress, u.emailOnError <> 0
  from Jobsets j join Projects p on p.name = j.project join Users u on u.userName = p.owner
 where j.id = $1
