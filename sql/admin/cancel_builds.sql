-- Caller: build cancel, for locked builds. Rows: those builds, as Hydra's web server does it; its trigger announces
-- builds_cancelled. Index: primary key.
update Builds set finished = 1, isCachedBuild = 0, buildStatus = 4, startTime = $2, stopTime = $2
where id = any($1) and finished = 0
