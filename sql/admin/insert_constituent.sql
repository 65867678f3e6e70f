-- Caller: enqueue. Rows: a member of an aggregate.
insert into AggregateConstituents (aggregate, constituent) values ($1, $2) on conflict do nothing
