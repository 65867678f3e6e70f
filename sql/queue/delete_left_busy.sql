-- Caller: the start of the queue runner. Rows: all notes of --unlock.
delete from hydrad.left_busy
