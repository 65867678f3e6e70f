-- Whether the database `hydra` exists.
-- Caller: db/embedded.rs, as superuser, at start. Rows: none (reads the catalogue). Locks: none. Index: of the catalogue.
select exists (select 1 from pg_database where datname = 'hydra')
