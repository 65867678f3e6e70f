-- Caller: the start of the queue runner, and the writer later, for busy rows whose outputs are not all there. Locks: the
-- rows, in order. Index: primary key.
update BuildSteps s set busy = 0, status = 3, stopTime = null
from (select * from unnest($1::int[], $2::int[]) as v (build, stepnr) order by build, stepnr) u
where s.build = u.build and s.stepnr = u.stepnr and s.busy <> 0
