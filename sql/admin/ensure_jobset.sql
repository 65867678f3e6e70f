-- Caller: enqueue. Rows: one jobset, disabled so that no evaluator takes it for its own.
insert into Jobsets (project, name, nixExprInput, nixExprPath, emailOverride, enabled, checkInterval)
values ($1, $2, '', '', '', 0, 0) on conflict do nothing
