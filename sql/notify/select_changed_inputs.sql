-- What of the inputs under version control is another revision for a build ($1) than it was for an earlier one ($2): each in the
-- first evaluation with new builds that it is a member of. Whether authors are told is as the jobset has it now.
-- Caller: db/facts.rs. Rows: reads a few. Locks: none. Index: IndexJobsetEvalMembersOnBuild, primary keys.
with evals as (
    select m.build, min(m.eval) as eval
      from JobsetEvalMembers m join JobsetEvals e on e.id = m.eval
     where m.build in ($1, $2) and e.hasNewBuilds = 1 group by m.build)
select n.name, n.type, n.uri, o.revision, n.revision,
       exists (select 1 from Builds b join Jobsets j on j.id = b.jobset_id
                 join JobsetInputs k on k.project = j.project and k.jobset = j.name and k.name = n.name
                where b.id = $1 and k.emailResponsible <> 0)
  from evals a join evals b on a.build = $1 and b.build = $2
  join JobsetEvalInputs n on n.eval = a.eval
  join JobsetEvalInputs o on o.eval = b.eval and o.name = n.name and o.altNr = n.altNr and o.type = n.type and o.uri = n.uri
 where n.type in ('git', 'hg') and n.revision <> o.revision
 order by n.name, n.altNr
