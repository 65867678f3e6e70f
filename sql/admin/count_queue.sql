-- Caller: status. Index: partial, finished = 0.
select count(*) from Builds where finished = 0
