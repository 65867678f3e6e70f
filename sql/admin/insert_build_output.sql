-- Caller: enqueue. Rows: one output of a build.
insert into BuildOutputs (build, name, path) values ($1, $2, $3)
