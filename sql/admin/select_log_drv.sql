-- Caller: log. The derivation whose log tells most about a build. Index: primary keys.
select coalesce(
    (select s.drvPath from BuildSteps s
     where s.build = b.id and s.status in (1, 7, 10, 11, 12) and s.type = 0 and s.machine <> '' and b.buildStatus <> 0
     order by s.stepnr desc limit 1),
    -- What it was resolved into has the log. (The column is there since schema 87.)
    (select r.drvPath from BuildSteps s
     join BuildSteps r on r.build = s.build and r.drvPath like '%/' || (to_jsonb(s) ->> 'resolveddrvpath')
     where s.build = b.id and s.drvPath = b.drvPath and s.status = 13
     order by r.stepnr desc limit 1),
    b.drvPath)
from Builds b where b.id = $1
