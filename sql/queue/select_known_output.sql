-- Caller: inspection, for a build whose outputs are already valid: a finished build that made one of them.
-- Index: hash(path) of BuildOutputs.
select b.id, b.buildStatus, b.releaseName, b.closureSize, b.size
from BuildOutputs o join Builds b on b.id = o.build
where o.path = any($1) and b.finished = 1 and b.buildStatus in (0, 6)
order by b.id desc limit 1
