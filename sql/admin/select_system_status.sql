-- Caller: status. Index: primary key.
select status::text from SystemStatus where what = 'queue-runner'
