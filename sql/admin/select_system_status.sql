-- Caller: status, queue, queue-runner --status. Index: primary key.
select status::text from SystemStatus where what = 'queue-runner'
