-- The database with Hydra's tables.
-- Caller: db/embedded.rs, as superuser, once. Rows: none. Locks: none. Index: none.
create database hydra owner hydra template template0 encoding 'UTF8'
