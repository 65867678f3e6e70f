-- Caller: eval: the newest evaluation of a jobset that changed anything. Index: JobsetEvals(jobset_id, id desc) where
-- hasNewBuilds = 1, Jobsets by primary key.
select e.id from JobsetEvals e join Jobsets j on j.id = e.jobset_id
where j.project = $1 and j.name = $2 and e.hasNewBuilds = 1 order by e.id desc limit 1
