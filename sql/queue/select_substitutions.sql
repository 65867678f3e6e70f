-- Caller: the writer, before it inserts substitutions. Rows: the substitutions of one derivation that a build has; none
-- but after a lost connection. Locks: none. Index: primary keys.
select o.path, s.startTime
from BuildSteps s
join BuildStepOutputs o on o.build = s.build and o.stepnr = s.stepnr
where s.build = $1::int and s.type = 1 and s.drvPath = $2::text and o.path = any($3::text[])
