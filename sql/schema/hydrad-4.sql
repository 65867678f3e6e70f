-- hydrad's own tables, from version 3 to 4: the notifier's ledger.
-- Caller: db/schema.rs (`hydrad init`), in one transaction. Rows touched: the one of hydrad.meta.
-- Locks: those of creation. Index used: none. (No references to Hydra's tables: those may belong to another role.)

-- That there is a notifier, and what it wants to hear of. Without one nobody writes events.
create table hydrad.notifier (
    one         boolean primary key default true check (one),   -- there is one row
    seen_at     bigint not null,                                -- Unix time of its last sign of life
    channels    text[] not null
);

-- What was announced. hydrad's own programs write an event in the transaction of its NOTIFY; those of others are written
-- by the notifier when it hears or finds them.
create table hydrad.events (
    id           bigint generated always as identity primary key,
    channel      text not null,
    payload      text not null,
    backend      integer,                                       -- the server process that announced it; null: not ours
    at           bigint not null,                               -- Unix time
    state        text not null default 'new' check (state in ('new', 'planned', 'held')),
    pending_upto integer,                                       -- greatest notificationPendingSince of its builds
    builds       integer[] not null generated always as (
        case when channel in ('build_queued', 'build_started', 'build_finished')
                 then string_to_array(payload, e'\t')::integer[]
             when channel = 'step_finished' then array[split_part(payload, e'\t', 1)::integer]
             when channel in ('cached_build_queued', 'cached_build_finished')
                 then array[split_part(payload, e'\t', 2)::integer]
             else '{}'::integer[]
        end) stored
);
create index events_open on hydrad.events (id) where state <> 'planned';
create index events_builds on hydrad.events using gin (builds) with (fastupdate = off) where channel = 'build_finished';
create index events_backend on hydrad.events (backend, channel, md5(payload)) where backend is not null;

-- One event for one target: the key against duplicates.
create table hydrad.deliveries (
    event       bigint not null references hydrad.events (id) on delete cascade,
    target      text not null,                                  -- a plugin, or a plugin and the name of its block
    state       text not null default 'waiting'
                check (state in ('waiting', 'delivered', 'superseded', 'given_up', 'discarded')),
    attempts    integer not null default 0,
    due_at      bigint not null,                                -- Unix time; of a waiting one
    last_error  text,
    done_at     bigint,                                         -- Unix time; null while it waits
    retry_row   integer,                                        -- TaskRetries.id, if Hydra has the same to do
    primary key (event, target)
);
create index deliveries_waiting on hydrad.deliveries (target, event) where state = 'waiting';
create index deliveries_retry on hydrad.deliveries (retry_row) where retry_row is not null;

update hydrad.meta set version = 4;
