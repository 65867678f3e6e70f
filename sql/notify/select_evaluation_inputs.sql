-- The first alternatives of the inputs of evaluations, and whether their authors are to hear of failures.
-- Caller: db/facts.rs. Rows: reads a few for each of $1. Locks: none. Index: primary keys.
select i.eval, i.name, i.uri, i.revision, i.value,
       exists (select 1 from JobsetEvals e join Jobsets j on j.id = e.jobset_id
                 join JobsetInputs k on k.project = j.project and k.jobset = j.name and k.name = i.name
                where e.id = i.eval and k.emailResponsible <> 0)
  from JobsetEvalInputs i where i.eval = any($1) and i.altNr = 0 order by i.eval desc, i.name
