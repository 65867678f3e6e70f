-- Whether hydrad's own tables exist, and whether this role may read them.
-- Caller: db/schema.rs. Rows: none (reads the catalogue). Locks: none. Index: of the catalogue.
select to_regclass('hydrad.meta') is not null,
       coalesce(has_table_privilege(to_regclass('hydrad.meta'), 'select'), false)
