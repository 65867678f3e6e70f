-- Caller: the writer, for the outputs of succeeded builds; most rows already say so. Index: primary key.
update BuildOutputs o set path = u.path
from unnest($1::int[], $2::text[], $3::text[]) as u (build, name, path)
where o.build = u.build and o.name = u.name and o.path is distinct from u.path
