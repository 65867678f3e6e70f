-- Caller: update-gc-roots. Index: partial, finished = 0.
select id, drvPath, finished, buildStatus from Builds where finished = 0 order by id
