-- Caller: the writer, before it inserts the busy rows of starts. Returns the builds that are there and that nobody is
-- about to delete; the insertion's foreign key would otherwise wait for that transaction.
-- Locks: KEY SHARE on the returned rows, in id order. Index: primary key.
select id from Builds where id = any($1) order by id for key share skip locked
