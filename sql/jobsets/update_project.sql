-- Caller: project edit, apply, for a locked project. Rows: that project. Index: primary key.
update Projects set displayName = $2, description = $3, homepage = $4, owner = $5, enabled = $6, hidden = $7,
                    enable_dynamic_run_command = $8, declfile = $9, decltype = $10, declvalue = $11
where name = $1
