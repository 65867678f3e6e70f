-- Caller: what writes a jobset of this project, which must stay what it is meanwhile. Rows: none changed. Locks: the
-- project, shared. Index: primary key.
select name from Projects where name = $1 for share
