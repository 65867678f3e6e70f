-- Caller: the writer, with the answers. Whoever asked these has gone. Rows: deletes of hydrad.questions. Locks: those
-- rows. Index: none.
delete from hydrad.questions where asked_at < now() - interval '10 minutes'
