-- Caller: project and jobset delete, once the builds are gone. Rows: the jobsets and their inputs; Hydra's trigger announces
-- jobsets_deleted. Index: Jobsets_id_unique.
delete from Jobsets where id = any($1)
