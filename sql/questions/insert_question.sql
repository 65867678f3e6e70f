-- Caller: a command that asks the running queue runner. Rows: inserts one of hydrad.questions, and announces it.
-- Locks: the new row. Index: none.
with asked as (insert into hydrad.questions (question) values ($1) returning id)
select id, pg_notify('hydrad_question', id::text) from asked
