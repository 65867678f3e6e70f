-- Caller: the writer, before metrics are inserted. Index: primary key.
delete from BuildMetrics where build = any($1)
