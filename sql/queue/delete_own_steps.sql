-- Caller: the writer, for rows that this very transaction has inserted and that must be numbered anew.
-- Index: primary key. The guard keeps it from rows of anybody else.
delete from BuildSteps s using unnest($1::int[], $2::int[]) as u (build, stepnr)
where s.build = u.build and s.stepnr = u.stepnr and s.xmin::text = (pg_current_xact_id()::xid)::text
