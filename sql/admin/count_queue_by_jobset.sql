-- Caller: queue. Unfinished builds of each jobset and system. Index: partial, finished = 0.
select b.jobset_id, j.project || ':' || j.name, b.system, count(*), max(b.globalPriority), min(b.timestamp)
from Builds b join Jobsets j on j.id = b.jobset_id
where b.finished = 0 group by b.jobset_id, j.project, j.name, b.system order by 2, 3
