-- Caller: the monitor, for a jobset it does not know. Index: unique id.
select project || ':' || name, schedulingShares from Jobsets where id = $1
