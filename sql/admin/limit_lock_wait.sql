-- Caller: the commands that change builds: a row that somebody else keeps locked (an evaluation may, for minutes) is
-- not waited for longer. Rows: none.
set local lock_timeout = '10s'
