-- The new builds of an evaluation that ended after $2 otherwise than the build of the same job before them: also those that fail and
-- have none before them. Not what was aborted or cancelled.
-- Caller: db/facts.rs, once for a finished evaluation. Rows: reads its members and the build before each. Locks: none. Index: primary
-- keys, as select_previous.
select b.id
  from JobsetEvalMembers m join Builds b on b.id = m.build
  left join lateral (
       select p.buildStatus as status from Builds p
        where p.jobset_id = b.jobset_id and p.job = b.job and p.system = b.system and p.id < b.id and p.finished = 1
          and p.buildStatus not in (3, 4)
        order by p.id desc limit 1) p on true
 where m.eval = $1 and m.isNew = 1 and b.finished = 1 and b.stopTime > $2 and b.buildStatus not in (3, 4)
   and b.buildStatus <> coalesce(p.status, 0)
 order by b.id limit $3
