-- Caller: build bump. Index: partial, finished = 0.
select coalesce(max(globalPriority), 0) from Builds where finished = 0
