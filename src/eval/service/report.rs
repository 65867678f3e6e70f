//! How things are with the evaluator: as JSON for `hydrad status` and the page, as metrics, in one line.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crossbeam_channel::{bounded, Sender};
use serde_json::{json, Value};

use super::evaluation::{Ending, Outcome, Running};
use super::{Core, Inbox, Standing, Why};
use crate::config::settings::Settings;
use crate::eval::schedule::Told;
use crate::model::UnixSecs;
use crate::sys::{heartbeat, process, watchdog};
use crate::web::http::{Request, Response, Status};
use crate::web::prometheus::{Kind, Page};
use crate::web::server::{Handler, Place, Server, Site};

/// How long a page waits for the thread with the schedule.
const PATIENCE: Duration = Duration::from_secs(5);
/// Jobsets in a report; the others are counted.
const JOBSETS_TOLD_MAX: usize = 10_000;

/// What was counted since the start.
#[derive(Default)]
pub struct Meters {
    started: u64,
    ended: BTreeMap<Ending, (u64, Duration)>,
    last_started: UnixSecs,
    last_ended: UnixSecs,
    last_done: UnixSecs,
    memory_kills: u64,
    /// The most memory that an evaluation has used.
    memory_bytes_most: u64,
}

impl Meters {
    pub fn started(&mut self, now: UnixSecs) {
        self.started += 1;
        self.last_started = now;
    }

    pub fn ended(&mut self, result: Ending, took: Duration, outcome: &Outcome, now: UnixSecs) {
        let (count, time) = self.ended.entry(result).or_default();
        *count += 1;
        *time += took;
        self.last_ended = now;
        if result == Ending::Done {
            self.last_done = now;
        }
        self.memory_kills += outcome.memory_kills;
        self.memory_bytes_most = self.memory_bytes_most.max(outcome.memory_bytes());
    }

    fn count(&self, result: Ending) -> (u64, Duration) {
        self.ended.get(&result).copied().unwrap_or_default()
    }
}

/// Serves `/metrics`, `/healthz` and `/status` where `evaluator_address` says.
///
/// # Errors
/// When a thread cannot be started.
pub fn serve(settings: &Settings, core: Sender<Inbox>) -> std::io::Result<Option<Server>> {
    let Some(address) = &settings.evaluator_address else {
        return Ok(None);
    };
    let site = Site {
        name: "evaluator",
        path: "/status",
        place: Place::Address(address.to_string()),
    };
    let patience = settings.watchdog_patience;
    let handler: Handler = Arc::new(move |_: &str, request: &Request| {
        let words: Vec<&str> = request.path.split('/').filter(|w| !w.is_empty()).collect();
        let page = match words.as_slice() {
            ["healthz"] => return health(&core, patience),
            ["metrics"] => look(&core, |core| Response::metrics(metrics(core))),
            ["status"] => look(&core, |core| Response::json(&json(core))),
            ["status", project, jobset] => {
                let names = (project.to_string(), jobset.to_string());
                look(&core, move |core| one_jobset(core, &names.0, &names.1))
            }
            _ => Some(Response::error(
                Status::NotFound,
                "there are /metrics, /healthz, /status and /status/PROJECT/JOBSET",
            )),
        };
        page.unwrap_or_else(|| {
            let message = "the evaluator is too busy to answer; try again";
            Response::error(Status::Unavailable, message)
        })
    });
    Server::start(vec![site], handler, Arc::default()).map(Some)
}

/// Has the thread with the schedule looked at; `None`: it does not answer in time.
fn look<T: Send + 'static>(
    core: &Sender<Inbox>,
    look: impl FnOnce(&Core) -> T + Send + 'static,
) -> Option<T> {
    // One answer.
    let (reply, answer) = bounded(1);
    let until = Instant::now() + PATIENCE;
    let look = Box::new(move |core: &Core| {
        // Whoever asked may have given up.
        let _ = reply.try_send(look(core));
    });
    core.send(Inbox::Look(look)).ok()?;
    answer.recv_deadline(until).ok()
}

/// Alive as long as the schedule is; the rest is said, and no reason for anybody to act.
fn health(core: &Sender<Inbox>, patience: Option<Duration>) -> Response {
    let standing = look(core, |core| core.standing.word());
    let beats = heartbeat::all();
    let stuck: Vec<String> = patience.map_or_else(Vec::new, |patience| {
        watchdog::stuck(Instant::now(), patience, &beats)
            .map(watchdog::stands_still)
            .collect()
    });
    let body = json!({
        "status": if standing.is_some() { "ok" } else { "the schedule does not answer" },
        "evaluator": standing,
        "stuckThreads": stuck,
    });
    let status = match standing {
        Some(_) => Status::Ok,
        None => Status::Unavailable,
    };
    Response {
        status,
        ..Response::json(&body)
    }
}

fn one_jobset(core: &Core, project: &str, jobset: &str) -> Response {
    let now = core.now();
    let told = core
        .schedule
        .tell(now)
        .find(|told| &*told.project == project && &*told.name == jobset);
    match told {
        Some(told) => Response::json(&jobset_json(&told)),
        None => Response::error(
            Status::NotFound,
            "no enabled jobset of an enabled project has this name",
        ),
    }
}

impl Standing {
    fn word(&self) -> &'static str {
        match self {
            Standing::Starting => "starting",
            Standing::Active => "active",
            Standing::StandBy(_) => "standing by",
            Standing::Away(_) => "without its database",
        }
    }

    fn why(&self) -> Option<&str> {
        match self {
            Standing::Starting | Standing::Active => None,
            Standing::StandBy(why) | Standing::Away(why) => Some(why),
        }
    }
}

/// What systemd shows of the service.
pub fn one_line(core: &Sender<Inbox>) -> String {
    look(core, |core| match &core.standing {
        Standing::Active => {
            let (slots, _) = core.schedule.limits().slots();
            let due = core.schedule.tell(core.now());
            let due = due.filter(|told| told.word == "due").count();
            let running = core.running.len();
            match core.schedule.hold() {
                Some(hold) => {
                    format!("{running} of {slots} evaluations; nothing is started: {hold}")
                }
                None => format!("{running} of {slots} evaluations, {due} jobsets are due"),
            }
        }
        standing => format!("{}: {}", standing.word(), standing.why().unwrap_or("soon")),
    })
    .unwrap_or_else(|| "the evaluator is too busy to say how things are".into())
}

fn jobset_json(told: &Told) -> Value {
    json!({
        "id": told.id.0,
        "project": told.project,
        "jobset": told.name,
        "state": told.word,
        "why": told.why,
        "dueIn": told.due_in_secs,
        "dueSince": told.due_since,
        "failures": told.failures,
    })
}

/// Everything.
pub fn json(core: &Core) -> Value {
    let now = core.now();
    let limits = core.schedule.limits();
    let (slots, by_memory) = limits.slots();
    let mut jobsets: Vec<Value> = core
        .schedule
        .tell(now)
        .take(JOBSETS_TOLD_MAX + 1)
        .map(|told| jobset_json(&told))
        .collect();
    let is_cut = jobsets.len() > JOBSETS_TOLD_MAX;
    jobsets.truncate(JOBSETS_TOLD_MAX);
    let evaluations: Vec<Value> = core.running.values().map(evaluation_json).collect();
    let ended: serde_json::Map<String, Value> = Ending::ALL
        .iter()
        .map(|result| {
            let (count, _) = core.meters.count(*result);
            (result.word().to_owned(), count.into())
        })
        .collect();
    json!({
        "status": match core.is_stopping { true => "stopping", false => "up" },
        "time": now.wall,
        "uptime": core.started.elapsed().as_secs(),
        "pid": std::process::id(),
        "version": env!("CARGO_PKG_VERSION"),
        "standing": core.standing.word(),
        "standingWhy": core.standing.why(),
        "hold": core.schedule.hold(),
        "slots": slots,
        "slotsByMemory": by_memory,
        "maxConcurrentEvals": limits.evaluations_max,
        "memoryBudget": limits.memory_bytes_max,
        "memoryEach": limits.memory_bytes_each,
        "controlGroups": core.groups.is_some(),
        "started": core.meters.started,
        "ended": ended,
        "memoryKills": core.meters.memory_kills,
        "lastStarted": core.meters.last_started,
        "lastEnded": core.meters.last_ended,
        "evaluations": evaluations,
        "jobsets": jobsets,
        "jobsetsCut": is_cut,
    })
}

fn evaluation_json(running: &Running) -> Value {
    let told = running.view.told();
    json!({
        "id": running.begun.jobset.0,
        "project": running.begun.project,
        "jobset": running.begun.name,
        "since": running.since,
        "seconds": running.started.elapsed().as_secs(),
        "pid": told.pid,
        "triggered": running.begun.trigger.is_some(),
        "ending": running.why.map(Why::words),
        "memoryBytes": told.memory_bytes.or_else(|| told.progress["memory_bytes"].as_u64()),
        "progress": told.progress,
    })
}

/// The page of `/metrics`.
fn metrics(core: &Core) -> String {
    let now = core.now();
    let limits = core.schedule.limits();
    let (slots, _) = limits.slots();
    let told: Vec<_> = core.schedule.tell(now).collect();
    let oldest = told.iter().filter_map(|told| told.due_since).min();
    let failing = told.iter().filter(|told| told.failures > 0).count();
    let most = told.iter().map(|told| told.failures).max().unwrap_or(0);
    let meters = &core.meters;
    let is_active = core.standing == Standing::Active;
    let is_held = core.schedule.hold().is_some();
    let flag = |is: bool| f64::from(u8::from(is));
    let mut page = Page::default();
    for (name, kind, help, value) in [
        (
            "hydrad_evaluator_active",
            Kind::Gauge,
            "1 if this evaluator is the active one.",
            flag(is_active),
        ),
        (
            "hydrad_evaluator_held",
            Kind::Gauge,
            "1 while nothing may be started; the status says why.",
            flag(is_held),
        ),
        (
            "hydrad_evaluator_running",
            Kind::Gauge,
            "Evaluations under way.",
            core.running.len() as f64,
        ),
        (
            "hydrad_evaluator_slots",
            Kind::Gauge,
            "Evaluations that may be under way at a time.",
            f64::from(slots),
        ),
        (
            "hydrad_evaluator_due_oldest_seconds",
            Kind::Gauge,
            "For how long the jobset that has waited longest has been due; 0: none is.",
            oldest.map_or(0.0, |since| (now.wall - since).max(0) as f64),
        ),
        (
            "hydrad_evaluator_failing",
            Kind::Gauge,
            "Jobsets whose last evaluation failed.",
            failing as f64,
        ),
        (
            "hydrad_evaluator_failures_most",
            Kind::Gauge,
            "Failures in a row of the jobset that has most.",
            f64::from(most),
        ),
        (
            "hydrad_evaluator_started_total",
            Kind::Counter,
            "Evaluations started.",
            meters.started as f64,
        ),
        (
            "hydrad_evaluator_last_started_seconds",
            Kind::Gauge,
            "Unix time of the last start; 0: none yet.",
            meters.last_started as f64,
        ),
        (
            "hydrad_evaluator_last_ended_seconds",
            Kind::Gauge,
            "Unix time of the last end; 0: none yet.",
            meters.last_ended as f64,
        ),
        (
            "hydrad_evaluator_last_done_seconds",
            Kind::Gauge,
            "Unix time of the last end without a failure; 0: none yet.",
            meters.last_done as f64,
        ),
        (
            "hydrad_evaluator_memory_budget_bytes",
            Kind::Gauge,
            "What all evaluations together may use.",
            limits.memory_bytes_max as f64,
        ),
        (
            "hydrad_evaluator_memory_each_bytes",
            Kind::Gauge,
            "What one evaluation is counted with.",
            limits.memory_bytes_each as f64,
        ),
        (
            "hydrad_evaluator_memory_most_bytes",
            Kind::Gauge,
            "The most that an evaluation has used, as far as is known.",
            meters.memory_bytes_most as f64,
        ),
        (
            "hydrad_evaluator_memory_kills_total",
            Kind::Counter,
            "Processes of evaluations that the kernel ended for want of memory.",
            meters.memory_kills as f64,
        ),
        (
            "hydrad_evaluator_resident_bytes",
            Kind::Gauge,
            "Memory of this process itself.",
            process::usage().resident_bytes.unwrap_or(0) as f64,
        ),
    ] {
        page.metric(name, kind, help);
        page.sample(&[], value);
    }
    page.metric(
        "hydrad_evaluator_jobsets",
        Kind::Gauge,
        "Enabled jobsets by what they do or wait for.",
    );
    for word in [
        "evaluating",
        "ending",
        "ended",
        "due",
        "builds",
        "later",
        "paused",
        "trigger",
        "unknown",
    ] {
        let count = told.iter().filter(|told| told.word == word).count();
        page.sample(&[("state", word)], count as f64);
    }
    page.metric(
        "hydrad_evaluator_ended_total",
        Kind::Counter,
        "Evaluations ended, by how.",
    );
    for result in Ending::ALL {
        page.sample(&[("result", result.word())], meters.count(result).0 as f64);
    }
    page.metric(
        "hydrad_evaluator_seconds_total",
        Kind::Counter,
        "Time that ended evaluations took, by how they ended.",
    );
    for result in Ending::ALL {
        page.sample(
            &[("result", result.word())],
            meters.count(result).1.as_secs_f64(),
        );
    }
    let evaluations = || {
        core.running
            .values()
            .map(|running| (running, running.view.told()))
    };
    page.metric(
        "hydrad_evaluator_evaluation_seconds",
        Kind::Gauge,
        "How long an evaluation has been under way.",
    );
    for (running, _) in evaluations() {
        let labels = [
            ("project", &*running.begun.project),
            ("jobset", &*running.begun.name),
        ];
        page.sample(&labels, running.started.elapsed().as_secs_f64());
    }
    page.metric(
        "hydrad_evaluator_evaluation_memory_bytes",
        Kind::Gauge,
        "Memory of an evaluation under way, as far as is known.",
    );
    for (running, told) in evaluations() {
        let labels = [
            ("project", &*running.begun.project),
            ("jobset", &*running.begun.name),
        ];
        let bytes = told
            .memory_bytes
            .or_else(|| told.progress["memory_bytes"].as_u64());
        if let Some(bytes) = bytes {
            page.sample(&labels, bytes as f64);
        }
    }
    page.metric(
        "hydrad_evaluator_evaluation_jobs",
        Kind::Gauge,
        "Jobs of an evaluation under way.",
    );
    for (running, told) in evaluations() {
        for what in ["found", "evaluated", "failed"] {
            let labels = [
                ("project", &*running.begun.project),
                ("jobset", &*running.begun.name),
                ("jobs", what),
            ];
            if let Some(jobs) = told.progress[what].as_u64() {
                page.sample(&labels, jobs as f64);
            }
        }
    }
    page.text()
}
