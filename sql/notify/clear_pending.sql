-- Builds whose end has been told to every target, or at least tried and recorded, are no longer marked as pending. Rows that
-- somebody else holds are left for the next sweep.
-- Caller: db/ledger.rs, after outcomes were recorded. Rows: the builds of the events $1. Locks: these, in id order.
-- Index: primary keys.
with told as (
    select b.id
      from hydrad.events e join Builds b on b.id = any(e.builds)
     where e.id = any($1) and e.channel = 'build_finished' and e.state = 'planned'
       and b.finished = 1 and b.notificationPendingSince <= e.pending_upto
       and not exists (select 1 from hydrad.deliveries d where d.event = e.id and d.state = 'waiting' and d.attempts = 0)
     order by b.id
       for update of b skip locked)
update Builds b set notificationPendingSince = null from told where b.id = told.id
