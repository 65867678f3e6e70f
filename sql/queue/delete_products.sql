-- Caller: the writer, before products are inserted (a restarted build may have old ones). Index: on build.
delete from BuildProducts where build = any($1)
