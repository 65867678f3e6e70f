-- Caller: build bump --emergency and --no-emergency. Rows: those of these builds, and of builds that have ended or are gone.
-- Index: primary key.
delete from hydrad.emergencies e
where e.build = any($1) or not exists (select 1 from Builds b where b.id = e.build and b.finished = 0)
