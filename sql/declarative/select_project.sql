-- Caller: db/declarative.rs. Rows: one project. Locks: none. Index: primary key.
select enable_dynamic_run_command from Projects where name = $1
