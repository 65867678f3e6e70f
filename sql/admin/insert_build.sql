-- Caller: enqueue. Rows: one build.
insert into Builds (finished, timestamp, jobset_id, job, nixName, description, drvPath, system, homepage, maxsilent,
                    timeout, isChannel, isCurrent, priority)
values (0, $1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, 1, $12) returning id
