-- Caller: build show. Whether a failure of the output is recorded, too. Index: primary keys.
select o.name, o.path, exists (select 1 from FailedPaths f where f.path = o.path)
from BuildOutputs o where o.build = $1 order by o.name
