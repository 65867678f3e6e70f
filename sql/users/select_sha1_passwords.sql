-- Passwords of the time before argon2: 40 hexadecimal digits.
-- Caller: db/users.rs. Rows: Users, all read. Locks: none. Index: none.
select userName, password from Users where password ~ '^[0-9a-f]{40}$' order by userName
