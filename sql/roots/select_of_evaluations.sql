-- Caller: update-gc-roots, for each jobset. The finished builds of some evaluations ($1), each with the newest of them.
-- Index: (eval) of JobsetEvalMembers, primary key of Builds.
select b.id, b.drvPath, b.finished, b.buildStatus, max(m.eval)
from JobsetEvalMembers m join Builds b on b.id = m.build
where m.eval = any($1) and b.finished = 1
group by b.id order by b.id
