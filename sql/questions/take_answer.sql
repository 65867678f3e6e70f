-- Caller: the command that asked. Rows: deletes its question, answered or not. Locks: that row. Index: primary key.
delete from hydrad.questions where id = $1 returning answer
