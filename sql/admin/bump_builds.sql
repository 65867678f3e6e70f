-- Caller: build bump, for locked builds. Rows: those builds; Hydra's trigger announces builds_bumped. Index: primary key.
update Builds set globalPriority = $2 where id = any($1) and finished = 0
