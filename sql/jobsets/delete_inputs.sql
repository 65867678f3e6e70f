-- Caller: db/jobsets.rs, for a locked jobset. Rows: its inputs and their values. Index: primary key.
delete from JobsetInputs where project = $1 and jobset = $2
