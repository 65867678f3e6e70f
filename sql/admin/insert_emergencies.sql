-- Caller: build bump --emergency, for locked builds. Rows: theirs. Index: primary key.
insert into hydrad.emergencies (build, until, since, who) select build, $2, $3, current_user from unnest($1::int[]) as t (build)
on conflict (build) do update set until = excluded.until, since = excluded.since, who = excluded.who
