-- Caller: the queue monitor. Questions that somebody may still wait for. Rows: reads hydrad.questions. Locks: none.
-- Index: none (the table holds a few rows).
select id, question from hydrad.questions
where answer is null and asked_at > now() - interval '30 seconds' order by id limit 50
