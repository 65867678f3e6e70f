-- Caller: the queue runner at its start and when told; the commands. Rows: reads hydrad.machine_orders. Locks: none.
-- Index: none (a few rows).
select machine, state, until, reason, who, since from hydrad.machine_orders order by machine
