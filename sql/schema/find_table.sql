-- Whether a table exists on this session's search_path; $1 may be qualified.
-- Caller: db/schema.rs, under the schema lock. Rows: none (reads the catalogue). Locks: none. Index: none.
select to_regclass($1::text) is not null
