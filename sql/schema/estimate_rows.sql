-- About how many rows a table has and how many bytes it takes; rows are -1 if never counted.
-- Caller: db/schema.rs, before an upgrade. Rows: none (reads the catalogue). Locks: none. Index: none.
select reltuples::bigint, pg_table_size(oid)
  from pg_class
 where oid = to_regclass(quote_ident($1::text))
