-- Caller: fetching a Mercurial input. One row by its key.
select storePath, sha256hash from CachedHgInputs where uri = $1 and branch = $2 and revision = $3
