-- Caller: the writer, for builds that lock_builds_of_starts did not return: those that are there are held by somebody
-- else, the others are deleted. Rows touched: none. Locks: none. Index: primary key.
select id from Builds where id = any($1)
