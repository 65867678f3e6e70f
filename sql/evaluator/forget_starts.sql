-- Caller: db/evaluator.rs, when an evaluator becomes the active one, and for --unlock. Rows touched: jobsets that look as if
-- they were being evaluated, but for those of $1. Locks: those rows. Index: none (the table is small).
update Jobsets set startTime = null where startTime is not null and id <> all($1)
