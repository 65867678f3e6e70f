-- Caller: log --follow, with a derivation's full path. Index: BuildSteps(drvPath), Builds(drvPath).
select exists (select 1 from BuildSteps s where s.drvPath = $1 and s.busy <> 0)
    or exists (select 1 from Builds b where b.drvPath = $1 and b.finished = 0)
