-- Caller: the writer. Rows: one a product of a succeeded build.
insert into BuildProducts (build, productnr, type, subtype, fileSize, sha256hash, path, name, defaultPath)
select * from unnest($1::int[], $2::int[], $3::text[], $4::text[], $5::bigint[], $6::text[], $7::text[],
                     $8::text[], $9::text[])
