-- hydrad's own tables, from version 2 to 3: what --unlock ended, and builds that go before everything else.
-- Caller: db/schema.rs (`hydrad init`), in one transaction. Rows touched: the one of hydrad.meta.
-- Locks: those of creation. Index used: none. (No references to Hydra's tables: those may belong to another role.)
create table hydrad.left_busy (
    build       integer not null,
    stepnr      integer not null,
    busy        integer not null,                               -- its phase
    primary key (build, stepnr)
);

create table hydrad.emergencies (
    build       integer primary key,
    until       bigint,                                         -- Unix time at which it ends; null: with the build
    since       bigint not null,                                -- Unix time
    who         text not null
);

update hydrad.meta set version = 3;
