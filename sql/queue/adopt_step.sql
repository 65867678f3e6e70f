-- Caller: the start of the queue runner, for a busy row whose outputs are all valid: it succeeded. Index: primary key.
update BuildSteps set busy = 0, status = 0, stopTime = $3 where build = $1 and stepnr = $2 and busy <> 0
