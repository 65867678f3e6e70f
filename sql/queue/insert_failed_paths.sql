-- Caller: the writer, for failures that may be cached. Rows: one an output path.
insert into FailedPaths (path) select distinct p from unnest($1::text[]) as p order by p on conflict do nothing
