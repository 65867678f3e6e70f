-- Caller: the writer, for builds that lock_unfinished_builds did not return. Locks: none. Index: primary key.
select id from Builds where id = any($1) and finished = 0
