-- Caller: project edit --rename, for a locked project. Rows: that project and, by its foreign keys, whatever names it.
-- Index: primary key.
update Projects set name = $2 where name = $1
