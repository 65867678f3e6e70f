-- Schema 84 to 85: how many characters of a revision to show.
-- Caller: db/schema.rs. Rows touched: none. Locks: JobsetEvalInputs exclusively, briefly. Index used: none.
alter table JobsetEvalInputs add column shortRevLength smallint;
