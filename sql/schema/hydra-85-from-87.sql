-- Takes from a new and empty database at 87 what came after 85, for web servers of the C++ time.
-- Caller: db/schema.rs (`hydrad init --schema 85`), right after hydra-87.sql in its transaction.
-- Rows touched: the one of SchemaVersion. Locks: BuildSteps exclusively. Index used: none.
alter table BuildSteps drop constraint buildsteps_resolved_consistent;
alter table BuildSteps drop column resolvedDrvPath;
alter table BuildSteps alter column drvPath drop not null;
update SchemaVersion set version = 85;
