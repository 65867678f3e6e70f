-- Caller: fetching a Subversion input. One row; an old one names a path that is gone.
insert into CachedSubversionInputs (uri, revision, storePath, sha256hash) values ($1, $2, $3, $4)
on conflict (uri, revision) do update set storePath = excluded.storePath, sha256hash = excluded.sha256hash
