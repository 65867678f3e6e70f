-- Caller: jobset edit --rename. Rows: where Hydra's web server finds the jobset under its old name. Index: primary key.
insert into JobsetRenames (project, from_, to_) values ($1, $2, $3)
on conflict (project, from_) do update set to_ = excluded.to_
