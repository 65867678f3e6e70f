//! The `SystemStatus` report: Hydra's keys, from the plan's snapshot and the counters of the threads.
//!
//! Times of the plan's clock are close to Unix time, so they go out as they are.

use std::sync::atomic::Ordering;
use std::time::Duration;

use serde_json::{json, Map, Value};

use super::Context;
use crate::model::Phase;
use crate::plan::{MachineStatus, Snapshot};
use crate::sys::clock::unix_now;

/// The report as JSON text.
pub fn system_status(context: &Context, snapshot: &Snapshot, uptime: Duration) -> String {
    let phase = |wanted: &[Phase]| -> u64 {
        snapshot
            .phases
            .iter()
            .filter(|(phase, _)| wanted.contains(phase))
            .map(|(_, runs)| runs)
            .sum()
    };
    let pool = context.pool.metrics();
    let report = json!({
        "status": "up",
        "time": unix_now(),
        "uptime": uptime.as_secs(),
        "pid": std::process::id(),
        "version": env!("CARGO_PKG_VERSION"),
        "nrQueuedBuilds": snapshot.builds_queued,
        "nrUnfinishedSteps": snapshot.steps_unfinished,
        "nrRunnableSteps": snapshot.steps_runnable,
        "nrBlockedSteps": snapshot.steps_blocked,
        "nrDeferredSteps": snapshot.steps_deferred,
        "nrUninspectedSteps": snapshot.steps_uninspected,
        "nrActiveSteps": snapshot.runs_active,
        "nrStepsBuilding": phase(&[Phase::Building]),
        "nrStepsCopyingTo": phase(&[Phase::SendingInputs]),
        "nrStepsCopyingFrom": phase(&[Phase::ReceivingOutputs]),
        "nrStepsWaiting": phase(&[Phase::Preparing, Phase::Connecting]),
        "nrUnsupportedSteps": snapshot.steps_unsupported,
        "bytesSent": context.traffic.bytes_sent.load(Ordering::Relaxed),
        "bytesReceived": context.traffic.bytes_received.load(Ordering::Relaxed),
        "nrBuildsDone": snapshot.builds_done,
        "nrStepsStarted": snapshot.steps_started,
        "nrStepsDone": snapshot.steps_done,
        "nrRetries": snapshot.retries,
        "maxNrRetries": snapshot.retries_most,
        "nrDbConnections": pool.in_use + pool.idle,
        "nrUnwrittenRecords": snapshot.tickets_unwritten,
        "machines": machines(&snapshot.machines),
        "machineTypes": machine_types(snapshot),
        "jobsets": jobsets(snapshot),
    });
    report.to_string()
}

/// By the first column of the machines file; the local machine also as `ssh://localhost`, where
/// newer web servers look for it.
fn machines(machines: &[MachineStatus]) -> Value {
    let mut map = Map::new();
    for machine in machines {
        let mut entry = json!({
            "enabled": machine.enabled,
            "maxJobs": machine.slots,
            "currentJobs": machine.current,
            "nrStepsDone": machine.steps_done,
            "consecutiveFailures": machine.consecutive_failures,
            "disabledUntil": machine.set_aside_until.map_or(0, |until| until.secs()),
        });
        if let Some(since) = machine.idle_since {
            entry["idleSince"] = json!(since.secs());
        }
        if let Some(error) = &machine.last_error {
            entry["lastError"] = json!(error);
        }
        if &*machine.name == "localhost" {
            map.insert("ssh://localhost".to_owned(), entry.clone());
        }
        map.insert(machine.name.to_string(), entry);
    }
    Value::Object(map)
}

fn machine_types(snapshot: &Snapshot) -> Value {
    let types = snapshot.system_types.iter().map(|kind| {
        let mut entry = json!({"runnable": kind.runnable, "running": kind.running});
        if kind.runnable > 0 {
            entry["waitTime"] = json!(kind.wait_secs);
        }
        if kind.running == 0 {
            entry["lastActive"] = json!(kind.last_active.secs());
        }
        (kind.name.to_string(), entry)
    });
    Value::Object(types.collect())
}

fn jobsets(snapshot: &Snapshot) -> Value {
    let jobsets = snapshot.jobsets.iter().map(|jobset| {
        let entry = json!({"shareUsed": jobset.share_used, "seconds": jobset.seconds});
        (jobset.name.to_string(), entry)
    });
    Value::Object(jobsets.collect())
}
