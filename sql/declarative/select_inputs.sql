-- Caller: db/declarative.rs. Rows: the inputs of a project's jobsets, one a value. Locks: none. Index: primary keys.
select i.jobset, i.name, i.type, i.emailResponsible <> 0, a.value,
       count(a.altnr) over (partition by i.jobset, i.name)
  from JobsetInputs i
  left join JobsetInputAlts a on a.project = i.project and a.jobset = i.jobset and a.input = i.name
 where i.project = $1
 order by i.jobset, i.name, a.altnr
