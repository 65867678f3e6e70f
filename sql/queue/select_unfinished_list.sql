-- Caller: the monitor: which builds are unfinished now, and their priority. Index: partial, finished = 0.
select id, globalPriority from Builds where finished = 0
