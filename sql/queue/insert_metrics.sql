-- Caller: the writer. Rows: one a metric of a succeeded build; project, jobset, job and time are the build's.
insert into BuildMetrics (build, name, unit, value, project, jobset, job, timestamp)
select b.id, u.name, u.unit, u.value, j.project, j.name, b.job, b.timestamp
from unnest($1::int[], $2::text[], $3::text[], $4::float8[]) as u (build, name, unit, value)
     join Builds b on b.id = u.build
     join Jobsets j on j.id = b.jobset_id
