-- Caller: the shadow, for builds that it expects to end. Index: primary key.
select id, buildStatus from Builds where id = any($1) and finished = 1
