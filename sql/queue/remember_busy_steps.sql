-- Caller: --unlock, before it ends them. Rows: all busy steps, noted. Index: partial, busy <> 0.
insert into hydrad.left_busy (build, stepnr, busy) select build, stepnr, busy from BuildSteps where busy <> 0
on conflict do nothing
