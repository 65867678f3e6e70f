-- Whose jobs these builds are.
-- Caller: db/facts.rs. Rows: reads those of $1. Locks: none. Index: primary keys.
select b.id, j.project, j.name, b.job from Builds b join Jobsets j on j.id = b.jobset_id where b.id = any($1)
