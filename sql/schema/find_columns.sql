-- The columns of the tables $1 (lower case) as this session's search_path finds them.
-- Caller: db/schema.rs. Rows: none (reads the catalogue). Locks: none. Index: of the catalogue.
select t.name, a.attname::text, a.attnotnull
  from unnest($1::text[]) as t (name)
  join pg_attribute a on a.attrelid = to_regclass(quote_ident(t.name))
 where a.attnum > 0
   and not a.attisdropped
