-- Caller: an input of type `eval` that names an evaluation.
select id from JobsetEvals where id = $1
