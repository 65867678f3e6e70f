-- Caller: whatever does not find a jobset: what it is called now. Index: primary key.
select to_ from JobsetRenames where project = $1 and from_ = $2
