-- Caller: whatever writes a declarative project. Rows: the jobset that makes the others, to be evaluated soon, as Hydra's web
-- server makes it. Index: primary key.
insert into Jobsets (project, name, nixExprInput, nixExprPath, emailOverride, triggerTime)
values ($1, '.jobsets', '', '', '', $2)
on conflict (project, name) do update
set type = 0, flake = null, nixExprInput = '', nixExprPath = '', emailOverride = '', triggerTime = excluded.triggerTime
