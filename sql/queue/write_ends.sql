-- Caller: the writer, for phases and ends of attempts, and for successes without products and metrics. One statement is
-- one round trip and one transaction; it does what the single statements for these records do, and whatever it leaves out
-- (a build that somebody holds) they do afterwards.
-- Rows: one a phase, an end, a build, and their outputs. Locks: the steps; NO KEY UPDATE on the builds' rows, in id order,
-- those that somebody holds left out. Indexes: primary keys.
-- What hydrad's notifier wants to hear of gets its row of the ledger.
-- Returns 0 and whether our service's lock is held ($1 to $3); then the numbers in the arrays of the notifications sent.
with guard as materialized (
    select set_config('lock_timeout', $4, true), set_config('synchronous_commit', $5, true),
           exists (select 1 from pg_locks
                   where locktype = 'advisory' and pid = $1 and granted
                     and classid::bigint = $2 and objid::bigint = $3
                     and database = (select oid from pg_database where datname = current_database())) as held
),
phased as (
    update BuildSteps s set busy = u.busy
    from (select * from unnest((select $6::int[]), $7::int[], $8::int[]) as v (build, stepnr, busy)
          order by build, stepnr) u
    where s.build = u.build and s.stepnr = u.stepnr and s.busy <> 0 and s.status is null and (select held from guard)
),
ended as (
    update BuildSteps s
    set busy = 0, status = u.status, errorMsg = u.errorMsg, startTime = u.startTime, stopTime = u.stopTime,
        overhead = u.overhead, timesBuilt = u.timesBuilt, isNonDeterministic = u.isNonDeterministic
    from (select * from unnest((select $9::int[]), $10::int[], $11::int[], $12::text[], $13::int[], $14::int[], $15::int[],
                               $16::int[], $17::bool[])
              as v (build, stepnr, status, errorMsg, startTime, stopTime, overhead, timesBuilt, isNonDeterministic)
          order by build, stepnr) u
    where s.build = u.build and s.stepnr = u.stepnr and s.busy <> 0 and (select held from guard)
    returning s.build, s.stepnr
),
free as materialized (
    select id from Builds where id = any((select $18::int[])::int[]) and finished = 0 and (select held from guard)
    order by id for no key update skip locked
),
finished as (
    update Builds b
    set finished = 1, buildStatus = u.buildStatus, startTime = u.startTime, stopTime = u.stopTime,
        size = u.size, closureSize = u.closureSize, releaseName = u.releaseName,
        isCachedBuild = u.isCachedBuild, notificationPendingSince = u.stopTime
    from unnest((select $18::int[]), $19::int[], $20::int[], $21::int[], $22::bigint[], $23::bigint[], $24::int[], $25::text[])
             as u (id, buildStatus, startTime, stopTime, size, closureSize, isCachedBuild, releaseName)
         join free f on f.id = u.id
    where b.id = u.id and b.finished = 0
    returning b.id
),
outputs as (
    update BuildOutputs o set path = u.path
    from unnest((select $26::int[]), $27::text[], $28::text[]) as u (build, name, path)
         join finished f on f.id = u.build
    where o.build = u.build and o.name = u.name and o.path is distinct from u.path
),
old_products as (
    delete from BuildProducts p using finished f where p.build = f.id
),
old_metrics as (
    delete from BuildMetrics m using finished f where m.build = f.id
),
due as (
    select u.n, u.channel, u.payload
    from unnest((select $29::text[]), $30::text[], $31::int[], $32::int[])
             with ordinality as u (channel, payload, build, stepnr, n)
         left join ended e on e.build = u.build and e.stepnr = u.stepnr
         left join finished f on u.stepnr is null and f.id = u.build
    where e.build is not null or f.id is not null
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
select 0::bigint, held, null::text from guard
union all
select n, true, pg_notify(channel, payload)::text from due
