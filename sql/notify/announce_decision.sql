-- Tells the notifier that an operator has decided about rows of the ledger.
-- Caller: db/ledger.rs. Rows: none. Locks: none. Index: none.
select pg_notify('hydrad_notifications', '')
