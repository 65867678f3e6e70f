-- Caller: fetching a Subversion input. One row by its key.
select storePath, sha256hash from CachedSubversionInputs where uri = $1 and revision = $2
