-- Caller: enqueue. Rows: one evaluation.
insert into JobsetEvals (jobset_id, timestamp, checkoutTime, evalTime, hasNewBuilds, hash, nrBuilds)
values ($1, $2, 0, 0, 1, 'hydrad-enqueue', $3) returning id
