-- Caller: db/evaluator.rs, when somebody asks. Rows touched: the evaluator's own in SystemStatus. Locks: that row. Index: key.
insert into SystemStatus (what, status) values ('evaluator', $1::text::json)
on conflict (what) do update set status = excluded.status
