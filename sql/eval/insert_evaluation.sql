-- Caller: db/evaluations.rs. Rows: one evaluation. Locks: KEY SHARE on its jobset.
insert into JobsetEvals (jobset_id, evaluationerror_id, timestamp, checkoutTime, evalTime, hasNewBuilds, hash, nrBuilds, flake,
                         nixExprInput, nixExprPath)
values ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11) returning id
