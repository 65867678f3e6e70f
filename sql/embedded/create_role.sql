-- The role that owns Hydra's tables; it logs in by the name of its operating system user only.
-- Caller: db/embedded.rs, as superuser, once. Rows: none. Locks: none. Index: none.
create role hydra login
