-- Caller: enqueue. Rows: one project.
insert into Projects (name, displayName, owner) values ($1, $1, 'hydrad') on conflict do nothing
