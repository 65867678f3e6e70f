-- hydrad's own tables, version 1, in a PostgreSQL schema of their own: Hydra's programs do not see
-- them, and `drop schema hydrad cascade` leaves Hydra as it was.
-- Caller: db/schema.rs (`hydrad init`), in one transaction. Rows touched: the one of hydrad.meta.
-- Locks: those of creation. Index used: none.
create schema if not exists hydrad;

comment on schema hydrad is 'hydrad, a backend for Hydra; made by `hydrad init`';

create table hydrad.meta (
    one        boolean primary key default true check (one),    -- there is one row
    version    integer not null,
    created_at timestamptz not null default now()
);

insert into hydrad.meta (version) values (1);
