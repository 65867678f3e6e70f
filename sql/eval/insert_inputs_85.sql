-- Caller: db/evaluations.rs, from schema 85 on. Rows: what an evaluation was made from. Locks: KEY SHARE on builds that are inputs.
insert into JobsetEvalInputs (eval, name, altNr, type, uri, revision, value, dependency, path, sha256hash, shortRevLength)
select $1, u.name, 0, u.type, u.uri, u.revision, u.value, u.dependency, u.path, u.sha256hash, u.shortRevLength
  from unnest($2::text[], $3::text[], $4::text[], $5::text[], $6::text[], $7::int[], $8::text[], $9::text[], $10::smallint[])
       as u (name, type, uri, revision, value, dependency, path, sha256hash, shortRevLength)
