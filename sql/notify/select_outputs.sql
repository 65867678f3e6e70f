-- Caller: db/facts.rs. Rows: reads the outputs of one build. Locks: none. Index: primary key.
select name, path from BuildOutputs where build = $1 order by name
