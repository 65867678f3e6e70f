-- Caller: db/evaluations.rs. Rows: none. So many ids of new builds, in order.
select nextval(pg_get_serial_sequence('Builds', 'id'))::int from generate_series(1, $1::int)
