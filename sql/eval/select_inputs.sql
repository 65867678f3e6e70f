-- Caller: db/evaluations.rs. Rows: the inputs of a jobset, one a value. Locks: none. Index: primary keys.
select i.name, i.type, coalesce(a.value, ''), i.emailResponsible <> 0
  from JobsetInputs i
  join JobsetInputAlts a on a.project = i.project and a.jobset = i.jobset and a.input = i.name
 where i.project = $1 and i.jobset = $2
 order by i.name, a.altnr
