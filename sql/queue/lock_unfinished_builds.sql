-- Caller: the writer, before builds are finished. Returns those that are unfinished and that nobody else
-- holds; the others are finished, deleted, or locked (select_unfinished_builds tells).
-- Locks: NO KEY UPDATE on the returned rows, in id order. Index: primary key.
select id from Builds where id = any($1) and finished = 0 order by id for no key update skip locked
