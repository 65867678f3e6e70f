-- Caller: fetching a git input. One row by its key.
select storePath, sha256hash from CachedGitInputs
where uri = $1 and branch = $2 and revision = $3 and isDeepClone = $4
