-- Caller: fetching a path. The row of this source that was seen last, if that was after $2.
select storePath, sha256hash, timestamp from CachedPathInputs
where srcPath = $1 and lastSeen > $2
order by lastSeen desc limit 1
