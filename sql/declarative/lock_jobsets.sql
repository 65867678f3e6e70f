-- Caller: db/declarative.rs, before a specification is applied. Rows: the jobsets of a project.
-- Locks: NO KEY UPDATE on them, in the order of their names. Index: primary key.
select name, enabled, hidden, type, flake, description, nixExprInput, nixExprPath, checkInterval, schedulingShares, enableEmail,
       enable_dynamic_run_command, emailOverride, keepnr
  from Jobsets where project = $1 order by name for no key update
