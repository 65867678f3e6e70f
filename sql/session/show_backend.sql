-- Caller: the start of a service. Rows touched: none. The server process of this session.
select pg_backend_pid()
