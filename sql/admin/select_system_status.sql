-- Caller: status, queue, explain, queue-runner --status. Index: primary key.
select status::text from SystemStatus where what = $1
