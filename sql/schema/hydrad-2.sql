-- hydrad's own tables, from version 1 to 2: questions to the running queue runner, and operators' orders about machines.
-- Caller: db/schema.rs (`hydrad init`), in one transaction. Rows touched: the one of hydrad.meta.
-- Locks: those of creation. Index used: none.
create table hydrad.questions (
    id          bigint generated always as identity primary key,
    question    text not null,                                  -- JSON
    asked_at    timestamptz not null default now(),
    answer      text                                            -- JSON; null until it is there
);

create table hydrad.machine_orders (
    machine     text primary key,                               -- first column of the machines file
    state       text not null check (state in ('enabled', 'drained', 'disabled')),
    until       bigint,                                         -- Unix time at which it ends; null: never
    reason      text,
    who         text not null,
    since       bigint not null                                 -- Unix time
);

update hydrad.meta set version = 2;
