-- Caller: db/evaluations.rs. Rows: what was wrong in an evaluation; also when nothing was.
insert into EvaluationErrors (errorMsg, errorTime) values ($1, $2) returning id
