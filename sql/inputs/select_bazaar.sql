-- Caller: fetching a Bazaar input. One row by its key.
select storePath, sha256hash from CachedBazaarInputs where uri = $1 and revision = $2
