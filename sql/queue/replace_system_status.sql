-- Caller: the writer, when somebody asked with dump_status. Rows: the one of the queue runner.
insert into SystemStatus (what, status) values ('queue-runner', $1::text::json)
on conflict (what) do update set status = excluded.status
