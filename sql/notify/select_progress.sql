-- Evaluations that the builds $1 are new in, and the evaluations $2: whether none of their new builds is unfinished any more; then also
-- the time up to which an earlier event told of them, and the time of their last end.
-- Caller: db/facts.rs, for each event about an end while `digest` is set. Rows: reads the unfinished builds of the jobset until one
-- belongs to the evaluation; of a finished evaluation its members and the events of the ledger. Locks: none. Index: primary keys,
-- IndexJobsetEvalMembersOnBuild, IndexBuildsOnFinished.
select f.eval, f.finished,
       case when f.finished then
           coalesce((select max(split_part(v.payload, e'\t', 3)::integer) from hydrad.events v
                      where v.channel = 'eval_finished' and split_part(v.payload, e'\t', 1) = f.eval::text), 0)
       else 0 end,
       case when f.finished then
           coalesce((select max(b.stopTime) from JobsetEvalMembers m join Builds b on b.id = m.build
                      where m.eval = f.eval and m.isNew = 1), 0)
       else 0 end
  from (select e.id as eval,
               not exists (select 1 from Builds b join JobsetEvalMembers m on m.build = b.id and m.eval = e.id and m.isNew = 1
                            where b.finished = 0 and b.jobset_id = e.jobset_id) as finished
          from JobsetEvals e
         where e.id in (select m.eval from JobsetEvalMembers m where m.build = any($1) and m.isNew = 1 union select unnest($2::integer[]))
        offset 0) f
 order by f.eval
