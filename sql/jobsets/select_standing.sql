-- Caller: project and jobset list and show; $1: only this project, or null. Of each jobset the newest evaluation that changed
-- anything, and its unfinished builds. Locks: none. Index: JobsetEvals(jobset_id) where hasNewBuilds = 1, partial finished = 0.
select j.id, (select max(e.id) from JobsetEvals e where e.jobset_id = j.id and e.hasNewBuilds = 1), coalesce(q.builds, 0)
from Jobsets j
left join (select jobset_id, count(*) as builds from Builds where finished = 0 group by jobset_id) q on q.jobset_id = j.id
where $1::text is null or j.project = $1
