-- Caller: project and jobset delete, once the evaluations are gone. Rows: the jobsets' builds and, by foreign keys, all about
-- them; Hydra's trigger announces builds_deleted. Locks: the builds, in the order of their ids. Index: Builds by jobset.
with doomed as (select id from Builds where jobset_id = any($1) order by id for update)
delete from Builds b using doomed where b.id = doomed.id
