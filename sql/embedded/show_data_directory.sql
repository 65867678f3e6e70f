-- The folder of the running cluster.
-- Caller: db/embedded.rs, as superuser, before adopting a server. Rows: none. Locks: none. Index: none.
select current_setting('data_directory')
