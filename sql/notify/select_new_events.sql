-- Events that nobody has planned deliveries for, the oldest first; and whether it is the end of a build that defines jobsets.
-- Caller: db/ledger.rs. Rows: up to $1, and the builds of those that ended. Locks: none. Index: events_open, primary keys.
select e.id, e.channel, e.payload, e.builds, e.at,
       e.channel = 'build_finished' and exists (
           select 1 from Builds b join Jobsets j on j.id = b.jobset_id join Projects p on p.name = j.project
            where b.id = any(e.builds) and j.name = '.jobsets' and p.declfile <> '')
  from hydrad.events e where e.state = 'new' order by e.id limit $1
