-- Caller: update-gc-roots. Jobsets but those that are disabled, hidden and not looked at since $1. Small tables, read whole.
select j.id, j.project || ':' || j.name, greatest(j.keepnr, 0)::bigint
from Jobsets j join Projects p on p.name = j.project
where not (j.enabled = 0 and (p.hidden = 1 or j.hidden = 1) and coalesce(j.lastCheckedTime, 0) < $1)
order by j.project, j.name
