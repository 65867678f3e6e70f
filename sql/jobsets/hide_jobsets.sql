-- Caller: db/jobsets.rs, for locked rows. Rows: jobsets that a specification no longer names. Index: primary key.
update Jobsets set enabled = 0, hidden = 1 where project = $1 and name = any($2)
