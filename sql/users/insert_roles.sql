-- Caller: db/users.rs. Rows: one for each role that the user does not have. Locks: these. Index: primary key.
insert into UserRoles (userName, role)
select $1, role from unnest($2::text[]) as role
    on conflict do nothing
