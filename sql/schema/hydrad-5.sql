-- hydrad's own tables, from version 4 to 5: what evaluated the jobs of an evaluation.
-- Caller: db/schema.rs (`hydrad init`), in one transaction. Rows touched: the one of hydrad.meta.
-- Locks: those of creation. Index used: none. (No references to Hydra's tables: those may belong to another role.)
create table hydrad.evaluations (
    evaluation  integer primary key,                            -- JobsetEvals.id
    evaluator   text not null,                                  -- evaluator_program: builtin, nix-eval-jobs
    processes   integer not null,                               -- evaluating processes that were started
    peak_bytes  bigint not null                                 -- memory of all of them together at its highest; 0: not known
);

update hydrad.meta set version = 5;
