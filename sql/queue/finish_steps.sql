-- Caller: the writer. Rows: one an ended attempt. Locks: those rows. Index: primary key.
update BuildSteps s
set busy = 0, status = u.status, errorMsg = u.errorMsg, startTime = u.startTime, stopTime = u.stopTime,
    overhead = u.overhead, timesBuilt = u.timesBuilt, isNonDeterministic = u.isNonDeterministic
from (select * from unnest($1::int[], $2::int[], $3::int[], $4::text[], $5::int[], $6::int[], $7::int[],
                           $8::int[], $9::bool[])
        as v (build, stepnr, status, errorMsg, startTime, stopTime, overhead, timesBuilt, isNonDeterministic)
      order by build, stepnr) u
where s.build = u.build and s.stepnr = u.stepnr and s.busy <> 0
returning s.build, s.stepnr
