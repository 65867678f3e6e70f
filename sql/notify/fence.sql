-- Nobody can become the active notifier and go on before this transaction has ended: sign_of_life.sql waits for it. A process that
-- stands still in the middle of one loses it after a while ($1).
-- Caller: db/ledger.rs, first in every transaction. Rows: the one of hydrad.notifier. Locks: that row, shared. Index: none.
select set_config('idle_in_transaction_session_timeout', $1, true) from hydrad.notifier for share
