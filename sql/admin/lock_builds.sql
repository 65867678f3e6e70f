-- Caller: build restart, cancel and bump. Rows: none changed. Locks: the builds', in the order of their ids. Index:
-- primary key.
select b.id, j.project || ':' || j.name || ':' || b.job, b.finished, b.buildStatus, b.drvPath, b.globalPriority
from Builds b join Jobsets j on j.id = b.jobset_id
where b.id = any($1) order by b.id for update of b
