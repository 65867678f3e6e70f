-- Caller: drain, disable, enable. Rows: one of hydrad.machine_orders, announced. Locks: that row. Index: primary key.
with written as (
    insert into hydrad.machine_orders (machine, state, until, reason, who, since) values ($1, $2, $3, $4, $5, $6)
    on conflict (machine) do update set state = excluded.state, until = excluded.until, reason = excluded.reason,
                                        who = excluded.who, since = excluded.since
    returning machine)
select machine, pg_notify('hydrad_machine_orders', '') from written
