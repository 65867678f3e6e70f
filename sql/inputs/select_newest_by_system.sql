-- Caller: an input of type `sysbuild`. For each system on which a job is current, its newest success and that one's main
-- output: `out`, else the first by name. Index: IndexFinishedSuccessfulBuilds.
select distinct on (b.system) b.id, b.nixName, b.releaseName, b.drvPath, o.name, o.path
from Builds b
    join Jobsets j on j.id = b.jobset_id
    left join BuildOutputs o on o.build = b.id
where j.project = $1 and j.name = $2 and b.job = $3 and b.finished = 1 and b.buildStatus = 0
  and exists (
    select 1 from Builds c
    where c.jobset_id = b.jobset_id and c.job = b.job and c.system = b.system and c.isCurrent = 1)
order by b.system, b.id desc, o.name is distinct from 'out', o.name
