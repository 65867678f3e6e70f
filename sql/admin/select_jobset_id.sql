-- Caller: enqueue. Index: primary key.
select id from Jobsets where project = $1 and name = $2
