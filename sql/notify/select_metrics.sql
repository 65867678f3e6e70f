-- Caller: db/facts.rs. Rows: reads the metrics of one build. Locks: none. Index: primary key.
select name, unit, value from BuildMetrics where build = $1 order by name
