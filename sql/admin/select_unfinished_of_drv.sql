-- Caller: explain. The unfinished builds of a derivation. Rows: reads Builds. Locks: none. Index: Builds (drvPath).
select b.id from Builds b where b.drvPath = $1 and b.finished = 0 order by b.id limit 20
