-- One evaluation.
-- Caller: db/facts.rs. Rows: reads one. Locks: none. Index: primary key.
select id, flake from JobsetEvals where id = $1
