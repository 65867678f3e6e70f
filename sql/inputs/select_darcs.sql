-- Caller: fetching a Darcs input. One row by its key.
select storePath, sha256hash, revCount from CachedDarcsInputs where uri = $1 and revision = $2
