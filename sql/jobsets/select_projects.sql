-- Caller: the commands that manage projects; $1: only these, or null for all. Index: primary key.
select name, displayName, description, homepage, owner, enabled, hidden, enable_dynamic_run_command, declfile, decltype,
       declvalue
from Projects where $1::text[] is null or name = any($1) order by name
