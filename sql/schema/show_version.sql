-- Hydra's schema version; there should be exactly one row.
-- Caller: db/schema.rs. Rows: reads SchemaVersion. Locks: none. Index: none.
select version from SchemaVersion
