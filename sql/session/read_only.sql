-- From here on this session cannot write, whatever is sent.
-- Caller: admin/check.rs, first of all. Rows: none. Locks: none. Index: none.
set session characteristics as transaction read only
