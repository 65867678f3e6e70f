-- Caller: db/jobsets.rs; $1: only this project, or null; $2: only this name, or null. Locks: none. Index: primary key.
select id, project, name, enabled, hidden, type, flake, description, nixExprInput, nixExprPath, checkInterval,
       schedulingShares, enableEmail, enable_dynamic_run_command, emailOverride, keepnr, lastCheckedTime, triggerTime,
       startTime, errorTime, errorMsg, fetchErrorMsg, coalesce(forceEval, false)
  from Jobsets
 where ($1::text is null or project = $1) and ($2::text is null or name = $2)
 order by project, name
