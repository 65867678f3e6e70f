-- Schema 85 to 86: each step has a derivation. Substitutions recorded without one get a stand-in,
-- which is the path of no derivation.
-- Caller: db/schema.rs. Rows touched: steps without a derivation. Locks: BuildSteps exclusively for
-- two passes over it. Index used: IndexBuildStepsOnDrvPath (is null).
-- First the whole table: who had only its rows would wait for those who wait for him.
lock table BuildSteps in access exclusive mode;
update BuildSteps
   set drvPath = '/nix/store/00000000000000000000000000000000-substituted.drv'
 where drvPath is null;
alter table BuildSteps alter column drvPath set not null;
