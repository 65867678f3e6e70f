-- Caller: build show. Index: primary key.
select stepnr, type, drvPath, busy, status, machine, startTime, stopTime, errorMsg, propagatedFrom, timesBuilt,
       isNonDeterministic
from BuildSteps where build = $1 order by stepnr limit $2
