-- Caller: fetching a Mercurial input. One row; an old one names a path that is gone.
insert into CachedHgInputs (uri, branch, revision, storePath, sha256hash) values ($1, $2, $3, $4, $5)
on conflict (uri, branch, revision) do update set storePath = excluded.storePath, sha256hash = excluded.sha256hash
