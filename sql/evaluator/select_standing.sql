-- Caller: db/evaluator.rs, for whoever asks about one jobset. Rows: reads Jobsets and Projects. Locks: none. Index: their keys.
select j.id, j.enabled, p.enabled <> 0, nullif(j.errorMsg, ''), nullif(j.fetchErrorMsg, ''), j.lastCheckedTime, j.startTime
from Jobsets j join Projects p on p.name = j.project
where j.project = $1 and j.name = $2
