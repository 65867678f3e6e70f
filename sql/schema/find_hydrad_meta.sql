-- Whether hydrad's own tables exist, and whether this role may read them. (to_regclass fails without rights on the schema.)
-- Caller: db/schema.rs. Rows: none (reads the catalogue). Locks: none. Index: of the catalogue.
select count(*) > 0,
       coalesce(bool_and(has_schema_privilege(n.oid, 'usage') and has_table_privilege(c.oid, 'select')), false)
  from pg_class c
  join pg_namespace n on n.oid = c.relnamespace
 where n.nspname = 'hydrad'
   and c.relname = 'meta'
