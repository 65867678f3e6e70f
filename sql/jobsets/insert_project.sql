-- Caller: project create, apply. Rows: one project.
insert into Projects (name, displayName, description, homepage, owner, enabled, hidden, enable_dynamic_run_command,
                      declfile, decltype, declvalue)
values ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11)
