-- Caller: the writer, for outputs whose path was not known before the build. Index: primary key.
update BuildStepOutputs o set path = u.path
from unnest($1::int[], $2::int[], $3::text[], $4::text[]) as u (build, stepnr, name, path)
where o.build = u.build and o.stepnr = u.stepnr and o.name = u.name and o.path is null
