-- Caller: project delete, once its jobsets are gone. Rows: that project and, by its foreign keys, its members. Index:
-- primary key.
delete from Projects where name = $1
