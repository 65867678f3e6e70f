//! The `SystemStatus` report: Hydra's keys, from the plan's snapshot and the counters of the threads.
//!
//! Times of the plan's clock are close to Unix time, so they go out as they are.

use std::sync::atomic::Ordering;
use std::time::Duration;

use serde_json::{json, Map, Value};

use super::Context;
use crate::model::Phase;
use crate::plan::explanation::holds_json;
use crate::plan::{MachineStatus, Snapshot, StepTime};
use crate::sys::clock::unix_now;
use crate::web::status as web;

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
    let mut report = json!({
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
        // Nobody waits here: slots of this host for receiving are given in the order of asking.
        "nrStepsWaitingForDownloadSlot": 0,
        "nrStepsWaiting": phase(&[Phase::Preparing, Phase::Connecting]),
        "nrUnsupportedSteps": snapshot.steps_unsupported,
        "bytesSent": context.traffic.bytes_sent.load(Ordering::Relaxed),
        "bytesReceived": context.traffic.bytes_received.load(Ordering::Relaxed),
        "nrBuildsDone": snapshot.builds_done,
        "nrStepsStarted": snapshot.steps_started,
        "nrStepsDone": snapshot.steps.steps,
        "nrRetries": snapshot.retries,
        "maxNrRetries": snapshot.retries_most,
        "nrDbConnections": pool.in_use + pool.idle,
        "nrUnwrittenRecords": snapshot.tickets_unwritten,
        "holds": holds_json(&snapshot.holds),
        "stall": snapshot.stall.as_ref().map(|stall| &stall.text),
        "stuckThreads": context.stuck_threads(),
        "emergencies": snapshot.emergencies.iter().map(|build| build.0).collect::<Vec<_>>(),
        "machines": machines(context, &snapshot.machines),
        "machineTypes": machine_types(snapshot),
        "jobsets": jobsets(snapshot),
    });
    add_step_times(&mut report, snapshot.steps);
    add_counters(&mut report, context);
    if let Some(cache) = context.dest.cache().map(|cache| cache.metrics()) {
        report["store"] = web::store(&cache);
        if web::is_bucket(&cache) {
            report["s3"] = web::s3(&cache.requests);
        }
    }
    report.to_string()
}

/// What the threads have counted. Hydra's dispatcher is the plan, its database updates are the records being written.
fn add_counters(report: &mut Value, context: &Context) {
    let queue = context.queue_metrics();
    let average = |sum: Duration, count: u64| match count {
        0 => 0.0,
        count => sum.as_secs_f64() * 1000.0 / count as f64,
    };
    for (key, value) in [
        ("nrBuildsRead", json!(queue.builds_read)),
        (
            "buildReadTimeMs",
            json!(queue.builds_read_time.as_millis() as u64),
        ),
        (
            "buildReadTimeAvgMs",
            json!(average(queue.builds_read_time, queue.builds_read)),
        ),
        ("nrQueueWakeups", json!(queue.monitor_wakeups)),
        ("nrDispatcherWakeups", json!(queue.plan_wakeups)),
        (
            "dispatchTimeMs",
            json!(queue.plan_running.as_millis() as u64),
        ),
        (
            "dispatchTimeAvgMs",
            json!(average(queue.plan_running, queue.plan_wakeups)),
        ),
        (
            "nrActiveDbUpdates",
            json!(context.writer_counters.metrics().writing),
        ),
    ] {
        report[key] = value;
    }
}

/// Hydra's four times, in seconds; only where there are steps.
fn add_step_times(entry: &mut Value, time: StepTime) {
    if time.steps == 0 {
        return;
    }
    let (all, built) = (time.built_ms.saturating_add(time.copied_ms), time.built_ms);
    let secs = |ms: u64| ms / 1000;
    let average = |ms: u64| ms as f64 / 1000.0 / time.steps as f64;
    entry["totalStepTime"] = json!(secs(all));
    entry["totalStepBuildTime"] = json!(secs(built));
    entry["avgStepTime"] = json!(average(all));
    entry["avgStepBuildTime"] = json!(average(built));
}

/// By the first column of the machines file; the local machine also as `ssh://localhost`, where
/// newer web servers look for it.
fn machines(context: &Context, machines: &[MachineStatus]) -> Value {
    let mut map = Map::new();
    for machine in machines {
        let mut entry = json!({
            "enabled": machine.enabled,
            "maxJobs": machine.slots,
            "currentJobs": machine.current,
            "systemTypes": machine.systems,
            "supportedFeatures": machine.supported_features,
            "mandatoryFeatures": machine.mandatory_features,
            "nrStepsDone": machine.steps.steps,
            "standing": machine.standing.word(),
            "told": machine.standing.tell(),
            "takesSteps": machine.standing.takes_steps(),
            "lastFailure": machine.last_fault.map_or(0, |at| at.secs()),
            "consecutiveFailures": machine.consecutive_failures,
            "disabledUntil": machine.set_aside_until.map_or(0, |until| until.secs()),
        });
        add_step_times(&mut entry, machine.steps);
        if let Some(since) = machine.idle_since {
            entry["idleSince"] = json!(since.secs());
        }
        if let Some(error) = &machine.last_error {
            entry["lastError"] = json!(error);
        }
        let facts = context.machines.get(machine.id).map(|m| m.facts());
        entry["nixVersion"] = json!(facts.as_ref().and_then(|facts| facts.nix_version.as_ref()));
        entry["freeBytes"] = json!(facts.as_ref().and_then(|facts| facts.free_bytes));
        if &*machine.name == "localhost" {
            map.insert("ssh://localhost".to_owned(), entry.clone());
        }
        map.insert(machine.name.to_string(), entry);
    }
    Value::Object(map)
}

/// By system type, for auto-scalers.
pub fn machine_types(snapshot: &Snapshot) -> Value {
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
