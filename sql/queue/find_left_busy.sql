-- Caller: --unlock, which also works on a database without hydrad's own tables. Rows: none.
select to_regclass('hydrad.left_busy') is not null
