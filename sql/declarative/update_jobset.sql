-- Caller: db/declarative.rs, for a locked row. Rows: one jobset. Index: primary key.
update Jobsets set enabled = $3, hidden = $4, type = $5, flake = $6, description = $7, nixExprInput = $8, nixExprPath = $9,
       checkInterval = $10, schedulingShares = $11, enableEmail = $12, enable_dynamic_run_command = $13, emailOverride = $14,
       keepnr = $15
 where project = $1 and name = $2
