-- Caller: db/evaluations.rs, in the transaction of an evaluation. Rows: one of hydrad.evaluations.
insert into hydrad.evaluations (evaluation, evaluator, processes, peak_bytes) values ($1, $2, $3, $4)
