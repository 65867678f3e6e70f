-- Caller: the writer, after insert_steps. Rows: one an output of a step. Index: primary keys.
insert into BuildStepOutputs (build, stepnr, name, path)
select u.build, u.stepnr, u.name, u.path
from unnest($1::int[], $2::int[], $3::text[], $4::text[]) as u (build, stepnr, name, path)
where exists (select 1 from BuildSteps s where s.build = u.build and s.stepnr = u.stepnr)
on conflict do nothing
