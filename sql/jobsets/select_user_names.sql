-- Caller: project create, for an owner; the first 50. Index: primary key.
select userName from Users order by userName limit 50
