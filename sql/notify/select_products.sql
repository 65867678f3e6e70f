-- Caller: db/facts.rs. Rows: reads the products of one build. Locks: none. Index: primary key.
select productnr, type, subtype, fileSize, sha256hash, path, name, defaultPath from BuildProducts
 where build = $1 order by productnr
