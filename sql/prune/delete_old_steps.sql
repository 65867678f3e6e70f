-- Deletes the steps of these builds, with their outputs; not those whose failure still counts, since they tell how old it is and
-- whose it was. A build that was restarted meanwhile only loses steps of its earlier life.
-- Caller: db/prune.rs. Rows: the steps of a batch of builds. Locks: these rows, and those of BuildStepOutputs. Index: primary keys.
delete from BuildSteps s
 where s.build = any($1) and s.busy = 0
   and not exists (select 1 from BuildStepOutputs o join FailedPaths f on f.path = o.path
                    where o.build = s.build and o.stepnr = s.stepnr)
