-- Caller: fetching a path. The row of this source that was seen last, if that was after $2; of two in one second the newer one.
select storePath, sha256hash, timestamp from CachedPathInputs
where srcPath = $1 and lastSeen > $2
order by lastSeen desc, timestamp desc limit 1
