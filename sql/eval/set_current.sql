-- Caller: db/evaluations.rs, in transactions of their own. Rows: up to a thousand builds. Locks: NO KEY UPDATE on them, in the order
-- of their ids. Index: primary key.
with locked as (select id from Builds where id = any($1) order by id for no key update)
update Builds b set isCurrent = $2 from locked where b.id = locked.id
