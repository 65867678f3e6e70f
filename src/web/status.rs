//! JSON of the shape that Hydra's web server and its users ask a queue runner for (`queue_runner_endpoint`): the names are
//! those of Hydra's REST interface, derivations are named without the store's folder.
//!
//! What only an agent on the machine could know (load, memory) is 0, as Hydra's pages expect a number; `pressure` is null.
//! Everything of ours beyond Hydra's names is additional. Pure.

use serde_json::{json, Map, Value};

use super::metrics::{hydra_times, standing, QueueMetrics};
use crate::base::text::rfc3339;
use crate::db::status::BuildRow;
use crate::model::{Phase, UnixSecs};
use crate::nix::store_path::base_name;
use crate::plan::{JobsetStatus, MachineStatus, PhaseMs, Snapshot, StepList, StepStatus};
use crate::store::binary_cache::{mib_per_sec, CacheMetrics};
use crate::store::objects::Counts;

/// What a page about everything needs beyond the plan's snapshot.
pub struct Around<'a> {
    pub now: UnixSecs,
    pub uptime_secs: f64,
    pub resident_bytes: Option<u64>,
    pub virtual_bytes: Option<u64>,
    pub queue: &'a QueueMetrics,
    /// Running derivations by machine.
    pub running: &'a StepList,
    /// Threads that stand still, in words.
    pub stuck: Vec<String>,
    /// The binary cache, if outputs go to one.
    pub cache: Option<&'a CacheMetrics>,
}

/// `/status`.
pub fn everything(snapshot: &Snapshot, around: &Around<'_>) -> Value {
    json!({
        "queueRunner": queue_runner(snapshot, around),
        "machines": machines(snapshot, around.running),
        "jobsets": jobsets(snapshot),
        "store": around.cache.map(store),
        "s3": around
            .cache
            .filter(|cache| is_bucket(cache))
            .map(|cache| (cache.place.clone(), s3(&cache.requests)))
            .into_iter()
            .collect::<Map<_, _>>(),
    })
}

/// Whether Hydra would have an `s3` section for it.
pub fn is_bucket(cache: &CacheMetrics) -> bool {
    cache.place.starts_with("s3://")
}

/// Hydra's section about a binary cache; one number under the names of both its generations.
pub fn store(of: &CacheMetrics) -> Value {
    json!({
        "narInfoRead": of.nar_info_read,
        "narInfoReadAverted": of.nar_info_read_averted,
        "narInfoMissing": of.nar_info_missing,
        "narInfoWrite": of.nar_info_write,
        "narInfoCacheSize": of.remembered,
        "pathInfoCacheSize": of.remembered,
        "narRead": of.nar_read,
        "narReadBytes": of.nar_read_bytes,
        "narReadCompressedBytes": of.nar_read_compressed_bytes,
        "narWrite": of.nar_write,
        "narWriteAverted": of.nar_write_averted,
        "narWriteBytes": of.nar_write_bytes,
        "narWriteCompressedBytes": of.nar_write_compressed_bytes,
        "narWriteCompressionTimeMs": of.nar_write_compression_ms,
        "narCompressionSavings": of.compression_savings(),
        "narCompressionSpeed": of.compression_speed(),
        "logWrite": of.log_write,
        "logWriteFailed": of.log_write_failed,
        "place": of.place,
    })
}

/// Hydra's section about a bucket. The costs are Hydra's estimate, by Amazon's prices of long ago.
pub fn s3(of: &Counts) -> Value {
    let dollars = (of.gets + of.heads) as f64 / 10_000.0 * 0.004
        + of.puts as f64 / 1000.0 * 0.005
        + of.get_bytes as f64 / f64::from(1 << 30) * 0.09;
    json!({
        "put": of.puts,
        "putBytes": of.put_bytes,
        "putTimeMs": of.put_ms,
        "putSpeed": mib_per_sec(of.put_bytes, of.put_ms),
        "get": of.gets,
        "getBytes": of.get_bytes,
        "getTimeMs": of.get_ms,
        "getSpeed": mib_per_sec(of.get_bytes, of.get_ms),
        "head": of.heads,
        "costDollarApprox": dollars,
    })
}

fn queue_runner(now: &Snapshot, around: &Around<'_>) -> Value {
    let runs = |wanted: Phase| {
        let of_phase = now.phases.iter().filter(|(phase, _)| *phase == wanted);
        of_phase.map(|(_, runs)| *runs).sum::<u64>()
    };
    let queues: Map<String, Value> = now
        .system_types
        .iter()
        .map(|kind| {
            let stats = json!({
                "activeRunnable": kind.running,
                "totalRunnable": kind.runnable + kind.running,
                "nrRunnableWaiting": kind.runnable,
                "avgRunnableTime": kind.wait_secs.checked_div(kind.runnable).unwrap_or(0),
                "waitTimeMs": kind.wait_secs * 1000,
            });
            (kind.name.to_string(), stats)
        })
        .collect();
    let mut features: Vec<&str> = now
        .machines
        .iter()
        .flat_map(|machine| machine.supported_features.iter().map(|feature| &**feature))
        .collect();
    features.sort_unstable();
    features.dedup();
    let queue = around.queue;
    let mut value = json!({
        "status": "up",
        "time": rfc3339(around.now),
        "uptime": around.uptime_secs,
        "version": env!("CARGO_PKG_VERSION"),
        "proc": {
            "pid": std::process::id(),
            "rssBytes": around.resident_bytes,
            "vsizeBytes": around.virtual_bytes,
        },
        "supportedFeatures": features,
        "buildCount": now.builds_queued,
        "jobsetCount": now.jobsets.len(),
        "stepCount": now.steps_unfinished,
        "runnableCount": now.steps_runnable,
        "mainQueueStats": queues,
        "queueChecksStarted": queue.lists_begun,
        "queueChecksFinished": queue.lists_read,
        "queueBuildLoads": now.builds_loaded,
        "queueStepsCreated": now.steps_created,
        "dispatcherTimeSpentRunning": queue.plan_running.as_micros() as u64,
        "dispatcherTimeSpentWaiting": queue.plan_waiting.as_micros() as u64,
        "queueMonitorTimeSpentRunning": queue.monitor_running.as_micros() as u64,
        "queueMonitorTimeSpentWaiting": queue.monitor_waiting.as_micros() as u64,
        "nrBuildsRead": queue.builds_read,
        "buildReadTimeMs": queue.builds_read_time.as_millis() as u64,
        "nrQueueWakeups": queue.monitor_wakeups,
        "nrDispatcherWakeups": queue.plan_wakeups,
        "dispatchTimeMs": queue.plan_running.as_millis() as u64,
        "nrBuildsUnfinished": now.builds_queued,
        "nrBuildsDone": now.builds_done,
        "nrBuildsSucceeded": now.builds_succeeded,
        "nrBuildsFailed": now.builds_done - now.builds_succeeded,
    });
    let more = json!({
        "nrStepsStarted": now.steps_started,
        "nrStepsDone": now.steps.steps,
        "nrStepsBuilding": runs(Phase::Building),
        "nrStepsCopyingTo": runs(Phase::SendingInputs),
        "nrStepsCopyingFrom": runs(Phase::ReceivingOutputs),
        "nrStepsWaiting": runs(Phase::Preparing) + runs(Phase::Connecting),
        "nrStepsRunnable": now.steps_runnable,
        "nrStepsUnfinished": now.steps_unfinished,
        "nrUnsupportedSteps": now.steps_unsupported,
        "nrUnsupportedStepsAborted": now.steps_given_up,
        "nrRetries": now.retries,
        "maxNrRetries": now.retries_most,
        "machinesTotal": now.machines.iter().filter(|machine| machine.enabled).count(),
        "machinesInUse": now.machines.iter().filter(|machine| machine.current > 0).count(),
        "stepsReadyByReason": now.waits.iter().map(|(wait, steps)| (wait.word().to_owned(), json!(steps))).collect::<Map<_, _>>(),
        "recordsUnwritten": now.tickets_unwritten,
        "stalledSince": now.stall.as_ref().map(|stall| rfc3339(stall.since.secs())),
        "stall": now.stall.as_ref().map(|stall| &stall.text),
        "stuckThreads": around.stuck,
        "stopping": now.stopped,
    });
    for more in [more, step_times(&now.phase_ms, now.steps.steps)] {
        extend(&mut value, more);
    }
    value
}

fn extend(value: &mut Value, more: Value) {
    if let (Value::Object(value), Value::Object(more)) = (value, more) {
        value.extend(more);
    }
}

/// Time spent in attempts and of these in Hydra's phases, summed and for each finished step.
fn step_times(ms: &PhaseMs, steps: u64) -> Value {
    let [all, import, build, upload] = hydra_times(ms);
    let average = |ms: u64| ms.checked_div(steps).unwrap_or(0);
    json!({
        "avgStepTimeMs": average(all),
        "avgStepImportTimeMs": average(import),
        "avgStepBuildTimeMs": average(build),
        "avgStepUploadTimeMs": average(upload),
        "totalStepTimeMs": all,
        "totalStepImportTimeMs": import,
        "totalStepBuildTimeMs": build,
        "totalStepUploadTimeMs": upload,
    })
}

/// `/status/machines`.
pub fn machines_page(snapshot: &Snapshot, running: &StepList) -> Value {
    let machines = machines(snapshot, running);
    json!({"machinesCount": snapshot.machines.len(), "machines": machines})
}

fn machines(snapshot: &Snapshot, running: &StepList) -> Value {
    let one = |machine: &MachineStatus| (machine.name.to_string(), self::machine(machine, running));
    Value::Object(snapshot.machines.iter().map(one).collect())
}

fn machine(machine: &MachineStatus, running: &StepList) -> Value {
    let jobs: Vec<&str> = running
        .steps
        .iter()
        .filter(|step| {
            step.run
                .as_ref()
                .is_some_and(|(name, _)| *name == machine.name)
        })
        .map(|step| base_name(&step.drv))
        .collect();
    let (state, takes) = standing(machine);
    let has_slot = machine.current < machine.slots;
    let is_trusted = machine.enabled && machine.set_aside_until.is_none();
    let mut value = json!({
        "systems": machine.systems,
        "hostname": machine.name,
        "speedFactor": machine.speed_factor,
        "maxJobs": machine.slots,
        "score": machine.speed_factor,
        "supportedFeatures": without(&machine.supported_features, &machine.mandatory_features),
        "mandatoryFeatures": machine.mandatory_features,
        "totalMem": 0,
        "jobs": jobs,
        "hasCapacity": takes,
        "hasStaticCapacity": has_slot,
        "hasDynamicCapacity": is_trusted,
        "state": state,
        "lastError": machine.last_error,
        "stats": {
            "currentJobs": machine.current,
            "nrStepsDone": machine.steps.steps,
            "idleSince": machine.idle_since.map_or(0, |since| since.secs()),
            "lastFailure": machine.last_fault.map_or(0, |at| at.secs()),
            "disabledUntil": machine.set_aside_until.map_or(0, |until| until.secs()),
            "consecutiveFailures": machine.consecutive_failures,
            "load1": 0.0,
            "load5": 0.0,
            "load15": 0.0,
            "memUsage": 0,
            "pressure": null,
        },
    });
    let times = step_times(&machine.phase_ms, machine.steps.steps);
    extend(&mut value["stats"], times);
    value
}

/// Hydra's web server adds the mandatory features to the supported ones itself.
fn without<'a>(all: &'a [Box<str>], some: &[Box<str>]) -> Vec<&'a str> {
    let kept = all.iter().filter(|feature| !some.contains(feature));
    kept.map(|feature| &**feature).collect()
}

/// `/status/jobsets`.
pub fn jobsets_page(snapshot: &Snapshot) -> Value {
    json!({"jobsetCount": snapshot.jobsets.len(), "jobsets": jobsets(snapshot)})
}

fn jobsets(snapshot: &Snapshot) -> Value {
    let one = |jobset: &JobsetStatus| {
        let (project, name) = jobset.name.split_once(':').unwrap_or(("", &jobset.name));
        let value = json!({
            "id": jobset.id.0,
            "projectName": project,
            "name": name,
            "seconds": jobset.seconds,
            "shares": jobset.shares,
            "shareUsed": jobset.share_used,
        });
        (jobset.name.to_string(), value)
    };
    Value::Object(snapshot.jobsets.iter().map(one).collect())
}

/// `/status/steps` and `/status/runnable`.
pub fn steps_page(list: &StepList) -> Value {
    let one = |step: &StepStatus| {
        json!({
            "drvPath": base_name(&step.drv),
            "state": step.state,
            "since": rfc3339(step.since.secs()),
            "systemType": step.system_type,
            "runnable": step.is_runnable,
            "finished": step.is_finished,
            "previousFailure": step.tries > 0,
            "created": true,
            "tries": step.tries,
            "highestGlobalPriority": step.global_priority,
            "highestLocalPriority": step.local_priority,
            "lowestBuildId": step.lowest_build.0,
            "depsCount": step.deps_missing,
            "machine": step.run.as_ref().map(|(machine, _)| machine),
            "phase": step.run.as_ref().map(|(_, phase)| phase.text()),
        })
    };
    json!({
        "stepCount": list.total,
        "steps": list.steps.iter().map(one).collect::<Vec<_>>(),
        "truncated": is_truncated(list),
    })
}

/// `/status/queues/jobs` and `/status/queues/scheduled`.
pub fn queued_page(lists: &[StepList]) -> Value {
    let steps = lists.iter().flat_map(|list| &list.steps);
    json!({
        "stepCount": lists.iter().map(|list| list.total).sum::<u64>(),
        "steps": steps.map(queued).collect::<Vec<_>>(),
        "truncated": lists.iter().any(is_truncated),
    })
}

/// `/status/queues`: by platform.
pub fn queues_page(list: &StepList) -> Value {
    let mut queues: Map<String, Value> = Map::new();
    for step in &list.steps {
        let platform = step.platform.as_deref().unwrap_or("").to_owned();
        let queue = queues.entry(platform).or_insert_with(|| json!([]));
        if let Value::Array(queue) = queue {
            queue.push(queued(step));
        }
    }
    json!({"queues": queues, "stepCount": list.total, "truncated": is_truncated(list)})
}

fn queued(step: &StepStatus) -> Value {
    json!({
        "drvPath": base_name(&step.drv),
        "alreadyScheduled": step.run.is_some(),
        "runnable": step.is_runnable,
        "finished": step.is_finished,
        "cancelled": false,
        "runnableSince": rfc3339(step.since.secs()),
        "tries": step.tries,
        "lowestShareUsed": step.share_used,
        "highestGlobalPriority": step.global_priority,
        "highestLocalPriority": step.local_priority,
        "lowestBuildId": step.lowest_build.0,
        "systemType": step.system_type,
    })
}

fn is_truncated(list: &StepList) -> bool {
    (list.steps.len() as u64) < list.total
}

/// `/status/build/ID`; `why`: the plan's words, if it knows the build.
pub fn build_page(build: &BuildRow, why: Option<&str>) -> Value {
    json!({
        "id": build.id.0,
        "drvPath": base_name(&build.drv),
        "jobsetId": build.jobset.0,
        "project": build.project,
        "jobset": build.jobset_name,
        "job": build.job,
        "name": build.name,
        "timestamp": rfc3339(build.timestamp),
        "maxSilentTime": build.max_silent_secs,
        "timeout": build.timeout_secs,
        "localPriority": build.local_priority,
        "globalPriority": build.global_priority,
        "finishedInDb": build.is_finished,
        "buildStatus": build.status,
        "startTime": build.start.map(rfc3339),
        "stopTime": build.stop.map(rfc3339),
        "active": !build.is_finished,
        "why": why,
    })
}

/// `/status/build/ID/active`.
pub fn active_page(build: &BuildRow) -> Value {
    json!({"active": !build.is_finished})
}
