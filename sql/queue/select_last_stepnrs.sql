-- Caller: the writer, for builds whose step counter it does not know. Rows touched: none.
-- Locks: none. Index: primary key of BuildSteps.
select b.id, coalesce((select max(s.stepnr) from BuildSteps s where s.build = b.id), 0)
from Builds b where b.id = any($1)
