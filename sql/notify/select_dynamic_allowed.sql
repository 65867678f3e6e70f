-- Whether the jobset of a build and its project let its outputs be run.
-- Caller: db/facts.rs. Rows: reads one build. Locks: none. Index: primary keys.
select j.enable_dynamic_run_command, p.enable_dynamic_run_command
  from Builds b join Jobsets j on j.id = b.jobset_id join Projects p on p.name = j.project where b.id = $1
