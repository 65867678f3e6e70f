-- Caller: eval: the builds of an evaluation. Index: JobsetEvalMembers(eval), Builds by primary key.
select b.id, b.job, b.system, case when b.finished = 1 then coalesce(b.buildStatus, 3) end, m.isNew <> 0, b.nixName
from JobsetEvalMembers m join Builds b on b.id = m.build where m.eval = $1
