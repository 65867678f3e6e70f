-- Caller: fetching a Darcs input. One row; an old one names a path that is gone.
insert into CachedDarcsInputs (uri, revision, storePath, sha256hash, revCount) values ($1, $2, $3, $4, $5)
on conflict (uri, revision) do update
    set storePath = excluded.storePath, sha256hash = excluded.sha256hash, revCount = excluded.revCount
