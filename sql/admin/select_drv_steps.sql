-- Caller: explain. The newest attempts of a derivation, or of what it was resolved into (a column that is there since schema
-- 87), whichever build they belong to. Rows: reads BuildSteps. Locks: none. Index: BuildSteps (drvPath).
select s.build, s.stepnr, s.drvPath, s.busy, s.status, s.errorMsg, s.startTime, s.stopTime, s.machine, s.propagatedFrom
from BuildSteps s
where s.propagatedFrom is null and s.status is distinct from 13
  and s.drvPath = any (array[$1::text] || array(
      select regexp_replace($1::text, '[^/]*$', '') || (to_jsonb(r) ->> 'resolveddrvpath')
      from BuildSteps r where r.drvPath = $1 and r.status = 13))
order by coalesce(s.startTime, 0) desc, s.build desc, s.stepnr desc limit 20
