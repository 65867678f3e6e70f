-- Replaces the password $2 of user $1, unless it was changed meanwhile.
-- Caller: db/users.rs. Rows: one. Locks: that row. Index: primary key.
update Users set password = $3 where userName = $1 and password = $2
