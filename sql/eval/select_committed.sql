-- Caller: db/evaluations.rs, when a connection was lost in a commit of which nobody knows whether it happened. Rows: our evaluation,
-- if it did: newer than all before ($2), with our hash and time. Locks: none. Index: primary key.
select id from JobsetEvals where jobset_id = $1 and id > $2 and hash = $3 and timestamp = $4 order by id limit 1
