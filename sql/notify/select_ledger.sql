-- Rows of the ledger for people: in one of the states $1, about build $2, to target $3, announced since $4.
-- Caller: db/ledger.rs, for `hydrad notifications`. Rows: reads up to $5. Locks: none. Index: primary keys.
select l.id, l.channel, l.payload, l.at, l.target, l.state, l.attempts, l.due_at, l.last_error
  from (select e.id, e.channel, e.payload, e.at, d.target,
               case when e.state = 'held' and coalesce(d.state, 'waiting') = 'waiting' then 'held'
                    when d.event is null and e.state = 'planned' then 'none'
                    else coalesce(d.state, e.state) end as state,
               coalesce(d.attempts, 0) as attempts, d.due_at, d.last_error, e.builds
          from hydrad.events e left join hydrad.deliveries d on d.event = e.id) l
 where l.state = any($1) and ($2::integer is null or l.builds @> array[$2::integer])
   and ($3::text is null or l.target = $3 or l.target like $3 || ' %') and l.at >= $4
 order by l.id, l.target limit $5
