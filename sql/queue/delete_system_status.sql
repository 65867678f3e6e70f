-- Caller: --unlock and an orderly stop: no queue runner is up. Rows: the one of the queue runner.
delete from SystemStatus where what = 'queue-runner'
