-- The version of hydrad's own tables.
-- Caller: db/schema.rs, if hydrad.meta exists. Rows: reads hydrad.meta. Locks: none. Index: none.
select version from hydrad.meta
