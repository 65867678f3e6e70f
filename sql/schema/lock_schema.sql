-- Lets one program at a time create or upgrade tables.
-- Caller: db/schema.rs. Rows: none. Locks: advisory (`hydr`, 0) until the transaction ends. Index: none.
select pg_advisory_xact_lock(1752786034, 0)
