-- Caller: db/users.rs. Rows: all roles of a user. Locks: these. Index: primary key.
delete from UserRoles where userName = $1
