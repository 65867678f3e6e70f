-- Projects whose job sets a build of theirs defines.
-- Caller: db/facts.rs, at start. Rows: reads Projects. Locks: none. Index: none.
select name from Projects where declfile <> '' order by name limit 10
