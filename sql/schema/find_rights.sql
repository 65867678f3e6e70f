-- For each table (or sequence) $1 and right $2 (same position): whether this role has it; null if no such table.
-- Caller: admin/check.rs by way of db/schema.rs. Rows: none (reads the catalogue). Locks: none. Index: none.
select t.name, t.right_wanted,
       case t.right_wanted when 'USAGE' then has_sequence_privilege(to_regclass(t.name), t.right_wanted)
                           else has_table_privilege(to_regclass(t.name), t.right_wanted) end
  from unnest($1::text[], $2::text[]) as t (name, right_wanted)
