-- Gives user $1 the name $2 (its projects and roles follow), and what else is not null.
-- Caller: db/users.rs. Rows: one, with a new name those that refer to it. Locks: these. Index: primary key.
update Users
   set userName = $2,
       type = coalesce($3, type),
       fullName = coalesce($4, fullName),
       emailAddress = coalesce($5, emailAddress),
       password = coalesce($6, password)
 where userName = $1
