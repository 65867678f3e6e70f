-- Caller: project and jobset delete: rows of old versions of Hydra, which keep the builds they name. Index: BuildInputs(build).
delete from BuildInputs where build in (select id from Builds where jobset_id = any($1))
