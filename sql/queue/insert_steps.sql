-- Caller: the writer, for the start of attempts, propagated failures and substitutions. Rows: one a step.
-- Locks: KEY SHARE on the builds' rows. Index: primary keys. Returns what was inserted; a missing one
-- had its number taken or lost its build.
insert into BuildSteps (build, stepnr, type, drvPath, busy, status, startTime, stopTime, machine, system,
                        propagatedFrom, errorMsg)
select u.build, u.stepnr, u.type, u.drvPath, u.busy, u.status, u.startTime, u.stopTime, u.machine, u.system,
       u.propagatedFrom, u.errorMsg
from unnest($1::int[], $2::int[], $3::int[], $4::text[], $5::int[], $6::int[], $7::int[], $8::int[], $9::text[],
            $10::text[], $11::int[], $12::text[])
     as u (build, stepnr, type, drvPath, busy, status, startTime, stopTime, machine, system, propagatedFrom, errorMsg)
where exists (select 1 from Builds b where b.id = u.build)
order by u.build, u.stepnr
on conflict do nothing
returning build, stepnr
