-- Caller: the writer, when it does not know whether an earlier transaction with this busy row was committed:
-- the row is made anew. Index: primary key.
delete from BuildSteps where build = $1 and stepnr = $2 and drvPath = $3 and startTime = $4 and busy = 1
