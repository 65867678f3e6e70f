-- Caller: db/jobsets.rs, for a locked jobset. Rows: its inputs, with one value each.
with made as (
    insert into JobsetInputs (project, jobset, name, type, emailResponsible)
    select $1, $2, u.name, u.type, u.responsible
      from unnest($3::text[], $4::text[], $5::int[]) as u (name, type, responsible)
    returning name)
insert into JobsetInputAlts (project, jobset, input, altnr, value)
select $1, $2, m.name, 0, u.value
  from made m join unnest($3::text[], $6::text[]) as u (name, value) on u.name = m.name
