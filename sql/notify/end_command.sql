-- A command of RunCommand has ended.
-- Caller: db/facts.rs. Rows: one of RunCommandLogs. Locks: that row. Index: primary key.
update RunCommandLogs set end_time = $2, error_number = $3, exit_code = $4, signal = $5, core_dumped = $6 where id = $1
