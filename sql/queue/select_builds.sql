-- Caller: the monitor, when the plan asks for builds that a list showed. Index: primary key.
select b.id, b.jobset_id, b.drvPath, coalesce(b.maxsilent, 3600), coalesce(b.timeout, 36000),
       b.globalPriority, b.priority
from Builds b
where b.finished = 0 and b.id = any($1)
order by b.globalPriority desc, b.id
