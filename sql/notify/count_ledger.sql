-- How much waits, is held and was given up, and since when the oldest waits.
-- Caller: db/ledger.rs, for metrics and the command. Rows: reads the open ones. Locks: none. Index: deliveries_waiting,
-- events_open.
select (select count(*) from hydrad.deliveries where state = 'waiting')
         + (select count(*) from hydrad.events where state = 'new'),
       (select count(*) from hydrad.events where state = 'held'),
       (select count(*) from hydrad.deliveries where state = 'given_up'),
       (select min(e.at) from hydrad.events e
         where e.state = 'new'
            or e.state = 'planned' and e.id in (select event from hydrad.deliveries where state = 'waiting'))
