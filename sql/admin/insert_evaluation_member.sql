-- Caller: enqueue. Rows: a build's place in its evaluation.
insert into JobsetEvalMembers (eval, build, isNew) values ($1, $2, 1)
