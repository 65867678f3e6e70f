-- The LISTEN statement for channel $1, quoted by the server: LISTEN itself takes no parameters.
-- Caller: db/listen.rs, once per channel and connection. Rows: none. Locks: none. Index: none.
select format('listen %I', $1::text)
