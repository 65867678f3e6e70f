-- Caller: the writer, before the row of an attempt at what a step was resolved into (status 13; since schema 87). Rows: one,
-- or none if the build is gone or says so already. Locks: KEY SHARE on the build's row. Index: primary keys.
insert into BuildSteps (build, stepnr, type, drvPath, busy, status, startTime, stopTime, machine, system, resolvedDrvPath)
select $1::int, $2::int, 0, $3::text, 0, 13, $4::int, $4::int, '', $5::text, $6::text
where exists (select 1 from Builds b where b.id = $1)
  and not exists (select 1 from BuildSteps s
                  where s.build = $1 and s.drvPath = $3 and s.status = 13 and s.resolvedDrvPath = $6)
on conflict do nothing
