-- Caller: the writer, when it does not know whether earlier transactions with this row were committed: the row is made
-- anew. Such a transaction may also have changed its phase. Rows of other runs that we know ($2) are left alone.
-- Index: primary key.
delete from BuildSteps
where build = $1 and stepnr <> all($2::int[]) and drvPath = $3 and startTime = $4 and machine = $5
