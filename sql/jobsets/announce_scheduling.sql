-- Caller: what changes jobsets' standing without a row of Jobsets that Hydra's trigger looks at: a project switched on or off,
-- another name. Rows: none.
select pg_notify('jobset_scheduling_changed', '')
