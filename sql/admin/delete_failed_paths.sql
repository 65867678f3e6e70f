-- Caller: clear-failed. Rows: recorded failures. Index: primary key.
delete from FailedPaths where path = any($1) returning path
