-- Caller: whatever changes jobsets of a project; $2: only this one, or null for all. Rows: none changed. Locks: NO KEY UPDATE
-- on them, in the order of their ids. Index: primary key.
select id from Jobsets where project = $1 and ($2::text is null or name = $2) order by id for no key update
