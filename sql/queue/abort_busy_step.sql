-- Caller: the start of the queue runner, and the writer later, for a busy row whose outputs are not all there. Index: primary key.
update BuildSteps set busy = 0, status = 3, stopTime = null where build = $1 and stepnr = $2 and busy <> 0
