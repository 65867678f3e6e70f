-- A user's type, and the row is ours until the transaction ends.
-- Caller: db/users.rs. Rows: one. Locks: that row. Index: primary key.
select type from Users where userName = $1 for update
