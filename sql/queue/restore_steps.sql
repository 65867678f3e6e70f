-- Caller: the writer, after PostgreSQL was away: the busy rows of runs that are under way, should a crash of the
-- server have lost them. Rows: one a run that has none. Index: primary keys.
insert into BuildSteps (build, stepnr, type, drvPath, busy, startTime, machine, system)
select u.build, u.stepnr, 0, u.drvPath, 1, u.startTime, u.machine, u.system
from unnest($1::int[], $2::int[], $3::text[], $4::int[], $5::text[], $6::text[])
     as u (build, stepnr, drvPath, startTime, machine, system)
where exists (select 1 from Builds b where b.id = u.build)
order by u.build, u.stepnr
on conflict do nothing
