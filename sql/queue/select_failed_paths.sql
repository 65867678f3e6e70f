-- Caller: inspection, once a batch. Index: primary key.
select path from FailedPaths where path = any($1)
