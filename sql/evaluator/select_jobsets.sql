-- Caller: db/evaluator.rs. Rows: reads Jobsets and Projects. Locks: none. Index: none (both are small).
-- The jobsets that may be evaluated, and those of $1 (being evaluated) that are still there.
select j.id, j.project, j.name, coalesce(j.lastCheckedTime, 0), j.triggerTime, j.checkInterval, j.enabled,
       j.enabled <> 0 and p.enabled <> 0
from Jobsets j join Projects p on p.name = j.project
where (j.enabled <> 0 and p.enabled <> 0) or j.id = any($1)
