-- Caller: eval show and diff. Index: primary key.
select name, type, uri, revision, value, dependency, path from JobsetEvalInputs where eval = $1 order by name, altNr
