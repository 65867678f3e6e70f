-- Moves Hydra's schema version from $2 to $1; changes nothing if somebody else moved it.
-- Caller: db/schema.rs, in the transaction of an upgrade. Rows touched: the one of SchemaVersion.
-- Locks: that row. Index used: none.
update SchemaVersion set version = $1 where version = $2
