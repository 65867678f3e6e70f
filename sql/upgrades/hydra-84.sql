-- Schema 83 to 84: the path of an output need not be known before it is built.
-- Caller: db/schema.rs. Rows touched: none. Locks: BuildOutputs and BuildStepOutputs exclusively, briefly.
-- Index used: none.
alter table BuildOutputs alter column path drop not null;
alter table BuildStepOutputs alter column path drop not null;
