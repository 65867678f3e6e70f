-- Caller: inspection, for a known output. Index: primary key.
select name, unit, value from BuildMetrics where build = $1 order by name
