-- Caller: the monitor, with each list. Builds that go before everything else and have not ended since that was said. $1: now.
-- Index: primary keys.
select e.build, e.until from hydrad.emergencies e join Builds b on b.id = e.build
where b.finished = 0 and (e.until is null or e.until > $1) and (b.stopTime is null or b.stopTime <= e.since)
order by e.build limit $2
