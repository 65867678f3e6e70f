-- Caller: project and jobset delete: evaluations of other jobsets whose inputs came from builds of these. Index: primary keys.
select distinct j.project || ':' || j.name, e.id
from JobsetEvalInputs i
join Builds b on b.id = i.dependency
join JobsetEvals e on e.id = i.eval
join Jobsets j on j.id = e.jobset_id
where b.jobset_id = any($1) and j.id <> all($1)
order by 1, 2 limit 20
