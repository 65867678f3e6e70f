-- Caller: inspection, for a known output. Index: on build.
select type, subtype, fileSize, sha256hash, coalesce(path, ''), name, coalesce(defaultPath, '')
from BuildProducts where build = $1 order by productnr
