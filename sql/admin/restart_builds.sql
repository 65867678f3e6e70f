-- Caller: build restart, for locked builds. Rows: those builds, from finished to queued, as Hydra's web server does it;
-- its trigger announces builds_restarted. Index: primary key.
update Builds set finished = 0, isCachedBuild = 0 where id = any($1) and finished = 1
