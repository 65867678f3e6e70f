-- Caller: --build-one. Index: primary key.
select finished, buildStatus from Builds where id = $1
