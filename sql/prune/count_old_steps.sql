-- How many steps of these builds would go; see delete_old_steps.sql.
-- Caller: db/prune.rs. Rows: none touched. Locks: none. Index: primary keys.
select count(*)
  from BuildSteps s
 where s.build = any($1) and s.busy = 0
   and not exists (select 1 from BuildStepOutputs o join FailedPaths f on f.path = o.path
                    where o.build = s.build and o.stepnr = s.stepnr)
