-- Caller: db/evaluations.rs. Rows: outputs of new builds.
insert into BuildOutputs (build, name, path) select * from unnest($1::int[], $2::text[], $3::text[])
