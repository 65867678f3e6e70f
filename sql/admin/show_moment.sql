-- Caller: drain and disable, for --until. Rows: none. Locks: none. Index: none.
select extract(epoch from $1::text::timestamptz)::bigint
