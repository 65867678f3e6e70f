-- Caller: db/users.rs. Rows: the roles of a user. Locks: none. Index: primary key.
select role from UserRoles where userName = $1 order by role
