-- Caller: queue. Running steps by the jobset of the build that owns their row, and by system. Index: partial, busy <> 0.
select b.jobset_id, s.system, count(*) from BuildSteps s join Builds b on b.id = s.build
where s.busy <> 0 group by b.jobset_id, s.system
