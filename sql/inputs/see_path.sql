-- Caller: fetching a path or a list of a forge's. One row: when these contents were first seen there, and that they are there
-- now ($2).
insert into CachedPathInputs (srcPath, timestamp, lastSeen, sha256hash, storePath) values ($1, $2, $2, $3, $4)
on conflict (srcPath, sha256hash) do update set lastSeen = excluded.lastSeen, storePath = excluded.storePath
returning timestamp
