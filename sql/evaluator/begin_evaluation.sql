-- Caller: db/evaluator.rs, before an evaluation is started at $2. Rows touched: the jobset $1, if it is enabled still.
-- Locks: that row. Index: Jobsets_id_unique. (A changed trigger is announced by Hydra's own trigger.)
-- A trigger is moved before the start, so that one that comes from now on is another one, even within the same second; it
-- is cleared at the end, so that none is lost if there is no end.
update Jobsets j
set startTime = $2, triggerTime = case when j.triggerTime is not null then least(j.triggerTime, $2 - 1) end
from Projects p
where j.id = $1 and p.name = j.project and j.enabled <> 0 and p.enabled <> 0
returning j.project, j.name, j.triggerTime
