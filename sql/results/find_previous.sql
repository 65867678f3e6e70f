-- Caller: eval diff: the evaluation of the same jobset that changed anything before this one. Index: JobsetEvals(jobset_id, id
-- desc) where hasNewBuilds = 1.
select p.id from JobsetEvals e join JobsetEvals p on p.jobset_id = e.jobset_id
where e.id = $1 and p.id < e.id and p.hasNewBuilds = 1 order by p.id desc limit 1
