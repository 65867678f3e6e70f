-- Caller: the monitor, on builds_added with the lowest new id: the quick way to new builds; the list that
-- follows finds whatever this misses. Index: primary key or partial, finished = 0.
select b.id, b.jobset_id, b.drvPath, coalesce(b.maxsilent, 3600), coalesce(b.timeout, 36000),
       b.globalPriority, b.priority
from Builds b
where b.finished = 0 and b.id >= $1
order by b.globalPriority desc, b.id
limit $2
