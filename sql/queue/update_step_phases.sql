-- Caller: the writer. Rows: one a run whose phase changed; a finished row is left alone.
-- Locks: those rows, in order of build and stepnr. Index: primary key.
update BuildSteps s set busy = u.busy
from (select * from unnest($1::int[], $2::int[], $3::int[]) as v (build, stepnr, busy)
      order by build, stepnr) u
where s.build = u.build and s.stepnr = u.stepnr and s.busy <> 0 and s.status is null
