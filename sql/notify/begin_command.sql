-- A command of RunCommand begins.
-- Caller: db/facts.rs. Rows: one of RunCommandLogs. Locks: none. Index: none.
insert into RunCommandLogs (uuid, job_matcher, build_id, command, start_time)
values (gen_random_uuid(), $1, $2, $3, $4) returning id, uuid::text
