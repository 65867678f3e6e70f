-- Caller: whatever gives a jobset this name. Rows: what said that a jobset of this name is called otherwise. Index: primary
-- key.
delete from JobsetRenames where project = $1 and from_ = $2
