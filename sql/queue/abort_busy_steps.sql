-- Caller: --unlock. Rows: all busy steps, ended as Hydra ends them: without a stop time. Index: partial, busy <> 0.
update BuildSteps set busy = 0, status = 3, stopTime = null where busy <> 0
