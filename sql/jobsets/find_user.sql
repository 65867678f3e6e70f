-- Caller: whatever names an owner. Index: primary key.
select exists (select 1 from Users where userName = $1)
