-- Caller: as select_jobsets.sql, with the same parameters; a row for each value. Locks: none. Index: primary keys.
select i.project, i.jobset, i.name, i.type, i.emailResponsible <> 0, a.value,
       count(a.altnr) over (partition by i.project, i.jobset, i.name)
  from JobsetInputs i
  left join JobsetInputAlts a on a.project = i.project and a.jobset = i.jobset and a.input = i.name
 where ($1::text is null or i.project = $1) and ($2::text is null or i.jobset = $2)
 order by i.project, i.jobset, i.name, a.altnr
