-- Caller: project edit and delete, apply. Rows: none changed. Locks: these projects, in the order of their names. Index:
-- primary key.
select name from Projects where name = any($1) order by name for update
