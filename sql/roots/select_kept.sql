-- Caller: update-gc-roots. Finished builds that somebody marked to be kept. Index: partial, keep = 1.
select id, drvPath, finished, buildStatus from Builds where finished = 1 and keep = 1 order by id
