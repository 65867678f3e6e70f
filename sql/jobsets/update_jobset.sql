-- Caller: db/jobsets.rs, for a locked row. Rows: one jobset; Hydra's triggers announce jobset_scheduling_changed and
-- jobset_shares_changed where it is so. $16: now, where an evaluation is wanted as Hydra's web server does it (soon if the
-- jobset is enabled and polled, not at all otherwise; later than an evaluation in progress, which
-- takes away wishes up to its start); null: the time stays. Index: primary key.
update Jobsets set enabled = $3, hidden = $4, type = $5, flake = $6, description = $7, nixExprInput = $8, nixExprPath = $9,
       checkInterval = $10, schedulingShares = $11, enableEmail = $12, enable_dynamic_run_command = $13, emailOverride = $14,
       keepnr = $15,
       triggerTime = case when $16::int is null then triggerTime
                          when $3 <> 0 and $10 > 0 then coalesce(triggerTime, greatest($16::int, startTime + 1)) end
 where project = $1 and name = $2
