-- Caller: jobset evaluate: the newest evaluation of a jobset, whatever came of it; 0 if there is none. Index: primary key,
-- backwards.
select coalesce((select id from JobsetEvals where jobset_id = $1 order by id desc limit 1), 0)
