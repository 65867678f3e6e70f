-- Caller: an input of type `build` that names a build. Its main output: `out`, else the first by name.
select b.id, b.nixName, b.releaseName, b.drvPath, o.name, o.path
from Builds b left join BuildOutputs o on o.build = b.id
where b.id = $1
order by o.name is distinct from 'out', o.name
limit 1
