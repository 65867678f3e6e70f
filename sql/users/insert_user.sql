-- A user who cannot log in yet.
-- Caller: db/users.rs. Rows: one. Locks: that row. Index: primary key.
insert into Users (userName, emailAddress, password) values ($1, '', '!')
