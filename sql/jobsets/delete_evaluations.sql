-- Caller: project and jobset delete, for locked jobsets. Rows: their evaluations. Index: JobsetEvals by jobset.
delete from JobsetEvals where jobset_id = any($1)
