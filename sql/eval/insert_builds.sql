-- Caller: db/evaluations.rs, also for enqueue. Rows: new builds. Locks: KEY SHARE on their jobset.
insert into Builds (id, finished, timestamp, jobset_id, job, nixName, drvPath, system, description, license, homepage, maintainers,
                    maxsilent, timeout, isChannel, isCurrent, priority)
select u.id, 0, $1, $2, u.job, u.nixName, u.drvPath, u.system, u.description, u.license, u.homepage, u.maintainers, u.maxsilent,
       u.timeout, u.isChannel, 1, u.priority
  from unnest($3::int[], $4::text[], $5::text[], $6::text[], $7::text[], $8::text[], $9::text[], $10::text[], $11::text[],
              $12::int[], $13::int[], $14::int[], $15::int[])
       as u (id, job, nixName, drvPath, system, description, license, homepage, maintainers, maxsilent, timeout, isChannel, priority)
