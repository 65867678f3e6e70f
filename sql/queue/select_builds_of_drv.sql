-- Caller: the start of the queue runner, for an adopted step. Index: Builds(drvPath).
select id from Builds where drvPath = $1 and finished = 0 order by id
