-- Caller: an input of type `eval`. The output `out` of each job that succeeded in an evaluation.
select b.job, o.path
from JobsetEvalMembers m join Builds b on b.id = m.build join BuildOutputs o on o.build = b.id
where m.eval = $1 and b.finished = 1 and b.buildStatus = 0 and o.name = 'out' and o.path is not null
order by b.id
