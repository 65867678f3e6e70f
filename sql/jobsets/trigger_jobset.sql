-- Caller: jobset evaluate, for a locked jobset. Rows: that jobset, to be evaluated now; Hydra's trigger announces
-- jobset_scheduling_changed. Index: Jobsets_id_unique.
update Jobsets set triggerTime = $2, forceEval = case when $3 then true else forceEval end where id = $1
