-- Caller: the writer. Rows: updates the questions $1 with the answers $2 (same position). Locks: those rows, in the
-- order of their ids. Index: primary key.
update hydrad.questions q set answer = a.answer
from (select id, answer from unnest($1::bigint[], $2::text[]) as a (id, answer) order by id) a
where q.id = a.id and q.answer is null
