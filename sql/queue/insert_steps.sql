-- Caller: the writer, for the start of attempts and for propagated failures. Rows: one a step.
-- Locks: KEY SHARE on the builds' rows. Index: primary keys. Returns what was inserted; a missing one
-- had its number taken or lost its build.
insert into BuildSteps (build, stepnr, type, drvPath, busy, status, startTime, stopTime, machine, system,
                        propagatedFrom, errorMsg)
select u.build, u.stepnr, 0, u.drvPath, u.busy, u.status, u.startTime, u.stopTime, u.machine, u.system,
       u.propagatedFrom, u.errorMsg
from unnest($1::int[], $2::int[], $3::text[], $4::int[], $5::int[], $6::int[], $7::int[], $8::text[],
            $9::text[], $10::int[], $11::text[])
     as u (build, stepnr, drvPath, busy, status, startTime, stopTime, machine, system, propagatedFrom, errorMsg)
where exists (select 1 from Builds b where b.id = u.build)
order by u.build, u.stepnr
on conflict do nothing
returning build, stepnr
