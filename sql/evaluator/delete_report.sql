-- Caller: db/evaluator.rs, when the evaluator stops. Rows touched: the evaluator's own in SystemStatus. Locks: that row.
-- Index: key.
delete from SystemStatus where what = 'evaluator'
