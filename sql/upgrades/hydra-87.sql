-- Schema 86 to 87: a step that was resolved (status 13) says into which derivation.
-- Caller: db/schema.rs. Rows touched: none. Locks: BuildSteps exclusively for a pass over it.
-- Index used: none.
alter table BuildSteps add column resolvedDrvPath text;
alter table BuildSteps add constraint buildsteps_resolved_consistent
    check ((status = 13) = (resolvedDrvPath is not null));
