-- Caller: the writer, when it does not know whether earlier transactions with this row were committed: the row is made
-- anew. Such a transaction may also have changed its phase or ended it. Index: primary key.
delete from BuildSteps
where build = $1 and stepnr = any($2) and drvPath = $3 and startTime = $4 and machine = $5
