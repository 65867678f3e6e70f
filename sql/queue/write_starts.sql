-- Caller: the writer, for the starts of attempts and their phases so far. One statement is one round trip and one
-- transaction; it does what the single statements for these records do, and whatever it leaves out (a build that somebody
-- is about to delete, a number taken meanwhile) they do afterwards.
-- Rows: one a start, one an output of its step. Locks: KEY SHARE on the builds' rows, in id order, those that somebody
-- holds left out. Indexes: primary keys.
-- The arrays are sub-selects so that PostgreSQL cannot look into them: it then soon keeps one plan for all, instead of
-- planning each time for longer than it works.
-- What hydrad's notifier wants to hear of gets its row of the ledger.
-- Returns 0, null, whether our service's lock is held ($1 to $3); then, of the notifications that were sent, the number in
-- the arrays and the number of the step.
with guard as materialized (
    select set_config('lock_timeout', $4, true), set_config('synchronous_commit', 'off', true),
           exists (select 1 from pg_locks
                   where locktype = 'advisory' and pid = $1 and granted
                     and classid::bigint = $2 and objid::bigint = $3
                     and database = (select oid from pg_database where datname = current_database())) as held
),
startable as materialized (
    select id from Builds where id = any((select $5::int[])::int[]) and (select held from guard)
    order by id for key share skip locked
),
started as (
    insert into BuildSteps (build, stepnr, type, drvPath, busy, startTime, machine, system)
    select u.build,
           coalesce(u.last, (select max(s.stepnr) from BuildSteps s where s.build = u.build), 0) + u.nth,
           0, u.drvPath, u.busy, u.startTime, u.machine, u.system
    from unnest((select $5::int[]), $6::int[], $7::int[], $8::text[], $9::int[], $10::int[], $11::text[], $12::text[])
             as u (build, last, nth, drvPath, busy, startTime, machine, system)
         join startable b on b.id = u.build
    order by u.build, u.nth
    on conflict do nothing
    returning build, stepnr, drvPath
),
outputs as (
    insert into BuildStepOutputs (build, stepnr, name, path)
    select s.build, s.stepnr, u.name, u.path
    from unnest((select $13::int[]), $14::text[], $15::text[], $16::text[]) as u (build, drvPath, name, path)
         join started s on s.build = u.build and s.drvPath = u.drvPath
    on conflict do nothing
),
due as (
    select u.n, u.channel, coalesce(u.payload, s.build || e'\t' || s.stepnr) as payload, s.stepnr
    from unnest((select $17::text[]), $18::text[], $19::int[], $20::text[])
             with ordinality as u (channel, payload, build, drvPath, n)
         join started s on s.build = u.build and s.drvPath = u.drvPath
    order by u.n
    offset 0
),
-- As in notify_all.sql.
written as (
    insert into hydrad.events (channel, payload, backend, at)
    select d.channel, d.payload, pg_backend_pid(), extract(epoch from now())::bigint
    from due d, hydrad.notifier r
    where d.channel = any(r.channels) and r.seen_at > extract(epoch from now()) - 604800
    order by d.n
)
select 0::bigint, null::int, held, null::text from guard
union all
select n, stepnr, true, pg_notify(channel, payload)::text from due
