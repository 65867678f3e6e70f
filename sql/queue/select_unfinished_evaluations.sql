-- Caller: `hydrad simulate --from-database`: evaluations with unfinished builds, and which. Indexes: Builds(finished = 0),
-- JobsetEvalMembers(build), primary keys.
select e.id, j.project || ':' || j.name, m.build
from Builds b
join JobsetEvalMembers m on m.build = b.id
join JobsetEvals e on e.id = m.eval
join Jobsets j on j.id = e.jobset_id
where b.finished = 0
order by e.id, m.build
