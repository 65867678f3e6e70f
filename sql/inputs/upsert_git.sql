-- Caller: fetching a git input. One row; an old one names a path that is gone.
insert into CachedGitInputs (uri, branch, revision, isDeepClone, storePath, sha256hash) values ($1, $2, $3, $4, $5, $6)
on conflict (uri, branch, revision, isDeepClone) do update set storePath = excluded.storePath, sha256hash = excluded.sha256hash
