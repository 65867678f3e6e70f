-- Caller: the monitor, on jobset_shares_changed. Rows: all jobsets it knows. Index: unique id.
select id, schedulingShares from Jobsets where id = any($1)
