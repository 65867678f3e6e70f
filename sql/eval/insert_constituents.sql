-- Caller: db/evaluations.rs. Rows: members of aggregates. Locks: KEY SHARE on both builds.
insert into AggregateConstituents (aggregate, constituent) select * from unnest($1::int[], $2::int[]) on conflict do nothing
