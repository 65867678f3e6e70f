//! What is served over HTTP: which page is where, and from whom its facts come.
//!
//! Pages are about the plan's own state where they can be, so that they work without the database.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::meters::Meters;
use super::Context;
use crate::config::settings::Settings;
use crate::db::status as rows;
use crate::model::BuildId;
use crate::plan::explanation::Subject;
use crate::plan::{Plan, Snapshot, StepList};
use crate::sys::clock::unix_now;
use crate::sys::systemd::Sockets;
use crate::sys::{heartbeat, process};
use crate::web::http::{Request, Response, Status};
use crate::web::metrics::{self, QueueMetrics, Report};
use crate::web::server::{Counters, Handler, Place, Server, Site};
use crate::web::status;

/// A page may be this old: a crowd that asks costs the plan one answer.
const SNAPSHOT_AGE_MAX: Duration = Duration::from_millis(500);
/// How long a page waits for the plan.
const PLAN_PATIENCE: Duration = Duration::from_secs(5);
/// How long a page waits for a connection to the database.
const DB_PATIENCE: Duration = Duration::from_secs(3);
/// How old the number of pending notifications may be.
const PENDING_AGE_MAX: Duration = Duration::from_secs(10);
/// Steps on one page, and at most with `?limit=`.
const STEPS_DEFAULT: usize = 1_000;
const STEPS_MAX: usize = 10_000;
/// Running steps looked at for the pages of machines.
const RUNNING_MAX: usize = 100_000;

/// The sites, as in hydra.conf and in systemd's `FileDescriptorName=`.
const METRICS: &str = "metrics";
const STATUS: &str = "status";

/// Starts serving, if anything is to be served.
///
/// # Errors
/// When a thread cannot be started.
pub fn serve(
    context: &Arc<Context>,
    settings: &Settings,
    sockets: Sockets,
) -> std::io::Result<Option<Server>> {
    let mut sites = Vec::new();
    let mut given = sockets.named(&[METRICS, STATUS]);
    for (name, path, address) in [
        (METRICS, "/metrics", &settings.queue_runner_metrics_address),
        (STATUS, "/status", &settings.status_address),
    ] {
        // What systemd has opened comes before what hydra.conf says.
        let place = match given.remove(name) {
            Some(socket) => Some(Place::Socket(socket)),
            None => address.as_ref().map(|a| Place::Address(a.to_string())),
        };
        sites.extend(place.map(|place| Site { name, path, place }));
    }
    if sites.is_empty() {
        return Ok(None);
    }
    let counters = Arc::new(Counters::default());
    // The server ends before its context does.
    let pages = Pages {
        context: context.clone(),
        patience: settings.watchdog_patience,
        counters: counters.clone(),
    };
    let handler: Handler = Arc::new(move |site, request| pages.answer(site, request));
    Server::start(sites, handler, counters).map(Some)
}

struct Pages {
    context: Arc<Context>,
    /// How long a thread may stand still.
    patience: Option<Duration>,
    counters: Arc<Counters>,
}

impl Pages {
    fn answer(&self, site: &str, request: &Request) -> Response {
        let words: Vec<&str> = request
            .path
            .split('/')
            .filter(|word| !word.is_empty())
            .collect();
        match (site, words.as_slice()) {
            (_, ["healthz"]) => self.health(),
            (METRICS, ["metrics"]) => Response::metrics(metrics::page(&self.report())),
            (STATUS, ["status", rest @ ..]) => self.status(rest, request),
            (STATUS, ["explain", ..]) => self.explain(&request.path),
            _ => not_found(),
        }
    }

    fn status(&self, words: &[&str], request: &Request) -> Response {
        let limit = match request.parameter("limit").map(|text| text.parse::<usize>()) {
            None => STEPS_DEFAULT,
            Some(Ok(limit)) => limit.min(STEPS_MAX),
            Some(Err(_)) => return bad("limit is a number"),
        };
        let page = match words {
            [] => self.with_running(|snapshot, running| self.everything(snapshot, running)),
            ["machines"] => self.with_running(status::machines_page),
            ["jobsets"] => self.snapshot().map(|now| status::jobsets_page(&now)),
            ["steps"] => self
                .look(move |plan| plan.unfinished_steps(limit))
                .map(|list| status::steps_page(&list)),
            ["runnable"] => self
                .look(move |plan| plan.ready_steps(limit))
                .map(|list| status::steps_page(&list)),
            ["queues"] => self
                .look(move |plan| plan.ready_steps(limit))
                .map(|list| status::queues_page(&list)),
            ["queues", "jobs"] => self
                .look(move |plan| [plan.ready_steps(limit), plan.running_steps(limit)])
                .map(|lists| status::queued_page(&lists)),
            ["queues", "scheduled"] => self
                .look(move |plan| [plan.running_steps(limit)])
                .map(|lists| status::queued_page(&lists)),
            ["build", id, rest @ ..] => return self.build(id, rest),
            _ => return not_found(),
        };
        page.map_or_else(busy, |page| Response::json(&page))
    }

    /// What `hydrad explain --json` says. A derivation is a full path; a machine's name may have slashes too.
    fn explain(&self, path: &str) -> Response {
        let rest = |kind: &str| {
            let rest = path.strip_prefix(&format!("/explain/{kind}/"))?;
            Some(rest.trim_end_matches('/')).filter(|rest| !rest.is_empty())
        };
        let subject = if let Some(id) = rest("build").and_then(|id| id.parse().ok()) {
            Subject::Build(BuildId(id))
        } else if let Some(drv) = rest("drv") {
            let full = format!("/{}", drv.trim_start_matches('/'));
            let store = &self.context.store.dir().0;
            let is_full = full.starts_with(&format!("{store}/"));
            Subject::Drv(
                if is_full {
                    full
                } else {
                    format!("{store}/{drv}")
                }
                .into(),
            )
        } else if let Some(name) = rest("machine") {
            Subject::Machine(name.into())
        } else {
            return not_found();
        };
        let answer = self.context.explain(&subject);
        let status = match answer["known"].as_bool() {
            Some(false) => Status::NotFound,
            _ => Status::Ok,
        };
        Response {
            status,
            ..Response::json(&answer)
        }
    }

    fn build(&self, id: &str, rest: &[&str]) -> Response {
        let Ok(id) = id.parse().map(BuildId) else {
            return not_found();
        };
        let conn = self.context.pool.get(DB_PATIENCE);
        let row = match conn.and_then(|mut conn| rows::build(&mut conn, id)) {
            Ok(Some(row)) => row,
            Ok(None) => return Response::error(Status::NotFound, "there is no such build"),
            Err(error) => {
                let message = format!("the database cannot be asked: {error}");
                return Response::error(Status::Unavailable, &message);
            }
        };
        match rest {
            ["active"] => Response::json(&status::active_page(&row)),
            [] => {
                let told = self.context.look(PLAN_PATIENCE, move |plan, now| {
                    plan.explain(now, &Subject::Build(id))
                });
                // The first line says it all.
                let why = told
                    .flatten()
                    .and_then(|told| told.lines().into_iter().next());
                Response::json(&status::build_page(&row, why.as_deref()))
            }
            _ => not_found(),
        }
    }

    /// Alive as long as the plan is; the rest is said, and no reason for anybody to act.
    fn health(&self) -> Response {
        let plan_answers = self.snapshot().is_some();
        let database = match self.context.writer_counters.metrics().away_since {
            None => "there",
            Some(_) => "away",
        };
        let word = if plan_answers {
            "ok"
        } else {
            "the plan does not answer"
        };
        let body = serde_json::json!({
            "status": word,
            "database": database,
            "stuckThreads": self.context.stuck_threads(),
        });
        Response {
            status: if plan_answers {
                Status::Ok
            } else {
                Status::Unavailable
            },
            ..Response::json(&body)
        }
    }

    fn everything(&self, snapshot: &Snapshot, running: &StepList) -> serde_json::Value {
        let usage = process::usage();
        let cache = self.context.dest.cache().map(|cache| cache.metrics());
        let around = status::Around {
            now: unix_now(),
            uptime_secs: self.context.started.elapsed().as_secs_f64(),
            resident_bytes: usage.resident_bytes,
            virtual_bytes: usage.virtual_bytes,
            queue: &self.context.queue_metrics(),
            running,
            stuck: self.context.stuck_threads(),
            cache: cache.as_ref(),
        };
        status::everything(snapshot, &around)
    }

    fn with_running(
        &self,
        page: impl FnOnce(&Snapshot, &StepList) -> serde_json::Value,
    ) -> Option<serde_json::Value> {
        let snapshot = self.snapshot()?;
        let running = self.look(|plan| plan.running_steps(RUNNING_MAX))?;
        Some(page(&snapshot, &running))
    }

    fn snapshot(&self) -> Option<Arc<Snapshot>> {
        self.context.snapshot(SNAPSHOT_AGE_MAX, PLAN_PATIENCE)
    }

    fn look<T: Send + 'static>(&self, look: impl FnOnce(&Plan) -> T + Send + 'static) -> Option<T> {
        self.context.look(PLAN_PATIENCE, |plan, _| look(plan))
    }

    fn report(&self) -> Report {
        let context = &self.context;
        let pending = || {
            let mut conn = context.pool.get(DB_PATIENCE).ok()?;
            rows::pending_notifications(&mut conn).ok()
        };
        let pending = context.pending.get(PENDING_AGE_MAX, DB_PATIENCE, pending);
        let http = (
            self.counters.answers().collect(),
            self.counters.connections(),
            self.counters.evicted(),
        );
        Report {
            snapshot: self.snapshot(),
            now: unix_now(),
            uptime: context.started.elapsed(),
            pool: context.pool.metrics(),
            writer: context.writer_counters.metrics(),
            queue: context.queue_metrics(),
            notifications: pending.map(|pending| *pending),
            threads: heartbeat::all(),
            looked_at: Instant::now(),
            patience: self.patience,
            process: process::usage(),
            http,
        }
    }
}

impl Context {
    /// What the threads have counted.
    pub fn queue_metrics(&self) -> QueueMetrics {
        let Meters { plan, monitor, .. } = &self.meters;
        let load =
            |bytes: &std::sync::atomic::AtomicU64| bytes.load(std::sync::atomic::Ordering::Relaxed);
        QueueMetrics {
            inbox: self.plan.len() as u64,
            plan_running: plan.working.get(),
            plan_waiting: plan.waiting.get(),
            plan_wakeups: plan.wakeups.get(),
            monitor_running: monitor.working.get(),
            monitor_waiting: monitor.waiting.get(),
            monitor_wakeups: monitor.wakeups.get(),
            lists_begun: self.meters.lists_begun.get(),
            lists_read: self.meters.lists_read.get(),
            builds_read: self.meters.builds_read.get(),
            builds_read_time: self.meters.builds_read_time.get(),
            bytes_sent: load(&self.traffic.bytes_sent),
            bytes_received: load(&self.traffic.bytes_received),
            cache: self.dest.cache().map(|cache| cache.metrics()),
        }
    }
}

fn not_found() -> Response {
    Response::error(
        Status::NotFound,
        "there is no such page; MANUAL.md lists them",
    )
}

fn bad(message: &str) -> Response {
    Response::error(Status::BadRequest, message)
}

fn busy() -> Response {
    Response::error(
        Status::Unavailable,
        "the plan is too busy to answer; try again",
    )
}
