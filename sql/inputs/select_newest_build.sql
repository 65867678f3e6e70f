-- Caller: an input of type `build`. The newest success of a job whose inputs have all these values ($4 names, $5 values); its
-- main output: `out`, else the first by name. Index: IndexFinishedSuccessfulBuilds.
select b.id, b.nixName, b.releaseName, b.drvPath, o.name, o.path
from (
    select b.* from Builds b join Jobsets j on j.id = b.jobset_id
    where j.project = $1 and j.name = $2 and b.job = $3 and b.finished = 1 and b.buildStatus = 0
      and not exists (
        select 1 from unnest($4::text[], $5::text[]) wanted (name, value)
        where not exists (
            select 1 from BuildInputs i where i.build = b.id and i.name = wanted.name and i.value = wanted.value))
    order by b.id desc limit 1
) b left join BuildOutputs o on o.build = b.id
order by o.name is distinct from 'out', o.name
limit 1
