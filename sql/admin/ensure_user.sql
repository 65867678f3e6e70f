-- Caller: enqueue. Rows: the owner of projects made by hand; it cannot log in.
insert into Users (userName, emailAddress, password) values ('hydrad', '', '!') on conflict do nothing
