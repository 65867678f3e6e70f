-- Caller: jobset edit --rename, for a locked jobset. Rows: that jobset and, by its foreign keys, whatever names it. Index:
-- primary key.
update Jobsets set name = $3 where project = $1 and name = $2
