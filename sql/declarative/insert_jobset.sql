-- Caller: db/declarative.rs. Rows: one jobset.
insert into Jobsets (project, name, enabled, hidden, type, flake, description, nixExprInput, nixExprPath, checkInterval,
                     schedulingShares, enableEmail, enable_dynamic_run_command, emailOverride, keepnr)
values ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15)
