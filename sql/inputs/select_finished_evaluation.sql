-- Caller: an input of type `eval`. The newest evaluation of a jobset that made builds and has none unfinished; with a job
-- ($3), the newest of these in which that succeeded. Index: IndexJobsetEvalsOnJobsetId.
select e.id from JobsetEvals e join Jobsets j on j.id = e.jobset_id
where j.project = $1 and j.name = $2 and e.hasNewBuilds = 1
  and not exists (
    select 1 from JobsetEvalMembers m join Builds b on b.id = m.build where m.eval = e.id and b.finished = 0)
  and ($3::text is null or exists (
    select 1 from JobsetEvalMembers m join Builds b on b.id = m.build
    where m.eval = e.id and b.job = $3 and b.buildStatus = 0))
order by e.id desc limit 1
