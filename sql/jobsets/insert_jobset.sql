-- Caller: db/jobsets.rs. Rows: one jobset; Hydra's trigger announces jobsets_added. $16: now, where an evaluation is wanted as
-- Hydra's web server does it (soon, if the jobset is enabled and polled); null: by its interval alone.
insert into Jobsets (project, name, enabled, hidden, type, flake, description, nixExprInput, nixExprPath, checkInterval,
                     schedulingShares, enableEmail, enable_dynamic_run_command, emailOverride, keepnr, triggerTime)
values ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15,
        case when $3 <> 0 and $10 > 0 then $16::int end)
