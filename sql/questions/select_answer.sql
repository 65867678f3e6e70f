-- Caller: the command that asked. Whether the question $1 is answered. Rows: reads one. Locks: none. Index: primary key.
select answer is not null from hydrad.questions where id = $1
