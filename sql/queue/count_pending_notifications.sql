-- Caller: the metrics page, every ten seconds at most. Reads the partial index of what is pending, nothing else.
select count(*), min(notificationPendingSince)::bigint from Builds where notificationPendingSince is not null
