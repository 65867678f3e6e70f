//! The notifier: one resident process that hears what PostgreSQL announces and tells whoever is configured.
//!
//! This file owns the start, the standing by and the end of the service; what is told next is decided in `plan.rs`, what was
//! told stands in the ledger (`db/ledger.rs`), how somebody is told is in `plugins/`.
//!
//! Threads: the one that runs the service ([`dispatcher`]) owns the plan and writes the ledger; `notify-listen` receives;
//! `notify-1` to `notify-N` make the calls.

pub mod authors;
pub mod dispatcher;
pub mod document;
pub mod event;
pub mod http;
pub mod meters;
pub mod plan;
pub mod plugins;
pub mod smtp;

use std::cell::Cell;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use crossbeam_channel::{bounded, Receiver, RecvTimeoutError, Sender};

use crate::config::hydra_conf::{self, Document};
use crate::config::notify::{self as blocks, Plugins};
use crate::config::settings::{Override, Service, Settings};
use crate::db::connect::DbTarget;
use crate::db::ledger::{self, Backlog};
use crate::db::locks::{self, ServiceLock, Taken};
use crate::db::pool::Pool;
use crate::db::{schema, DbError};
use crate::sys::clock::unix_now;
use crate::sys::shared::Shared;
use crate::sys::signals::Signal;
use crate::sys::{heartbeat, systemd, thread, watchdog};
use crate::web::http::{Request, Response, Status};
use crate::web::server::{Handler, Place, Server, Site};
use meters::Meters;
use plugins::{Plugin, Surroundings};

use dispatcher::{Dispatcher, Done, Job, Why};

/// The name under which our sessions show in PostgreSQL.
pub const APPLICATION_NAME: &str = "hydrad-notify";
/// Listed in `ignore_settings`, declarative projects are somebody else's.
const DECLARATIVE: &str = "DeclarativeJobsets";
/// The backlog is counted at most this often, for at most this long.
const BACKLOG_AGE_MAX: Duration = Duration::from_secs(10);
const BACKLOG_PATIENCE: Duration = Duration::from_secs(5);
/// How often one that stands by looks whether it is its turn.
const STAND_BY_LOOK: Duration = Duration::from_secs(2);
/// The pause before a lost connection is made anew.
const AGAIN_AFTER: Duration = Duration::from_secs(1);
/// After the patience of a stop, calls are ended within this.
const LAST_CALLS: Duration = Duration::from_secs(12);

/// Why the notifier does not start.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Hydra's own notifier is at work.
    #[error("{0}")]
    Running(String),
    /// The database cannot be used.
    #[error("{0}")]
    Database(#[from] DbError),
    /// hydra.conf cannot be read.
    #[error("{0}")]
    Config(#[from] crate::config::HydraConfError),
    /// Its settings are wrong.
    #[error("{0}")]
    Settings(#[from] crate::config::ConfigError),
    /// A plugin's block cannot be served.
    #[error("{0}")]
    Plugin(String),
    /// A thread cannot be had.
    #[error("the system refuses a thread: {0}")]
    System(std::io::Error),
}

/// What the service needs to start.
pub struct Config {
    pub settings: Settings,
    /// Of the command line, for reading the settings again.
    pub overrides: Vec<Override>,
    pub target: DbTarget,
    /// Start beside sessions of Hydra's own notifier.
    pub beside: bool,
    /// Tell what is marked as not yet told, and leave.
    pub queued_only: bool,
    /// It is the only service of this process, and speaks with systemd.
    pub alone: bool,
    /// Where metrics are served; [`Notifier::prepare`] finds it in hydra.conf.
    pub metrics: Option<String>,
}

/// The plugins of hydra.conf.
///
/// # Errors
/// Everything that is wrong with their blocks.
pub fn read_plugins(settings: &Settings) -> Result<Plugins, Error> {
    let document = hydra_conf::read(&settings.config_path)?;
    let document = document.unwrap_or_else(|| Document::empty(&settings.config_path));
    blocks::plugins(&document).map_err(|errors| {
        let errors: Vec<String> = errors.iter().map(ToString::to_string).collect();
        Error::Plugin(errors.join("\n"))
    })
}

/// What hydra.conf asks for, as far as it can be changed while we live.
pub struct Wanted {
    pub plugins: Vec<Arc<dyn Plugin>>,
    pub around: Arc<Surroundings>,
    pub age_max: Duration,
    pub keep: Duration,
    /// Where metrics are served.
    metrics: Option<String>,
}

impl Wanted {
    fn of(settings: &Settings, pool: Pool, http: Arc<http::Client>) -> Result<Wanted, Error> {
        let mut blocks = read_plugins(settings)?;
        if settings
            .ignore_settings
            .iter()
            .any(|word| word == DECLARATIVE)
        {
            blocks.declarative = None;
        }
        let plugins = plugins::all(&blocks).map_err(Error::Plugin)?;
        http.set_rates(&settings.notification_rates);
        Ok(Wanted {
            plugins,
            around: Arc::new(Surroundings {
                pool,
                http,
                base_uri: settings.base_uri.trim_end_matches('/').to_owned(),
                data_dir: settings.data_dir.clone(),
                time_max: settings.notification_timeout,
            }),
            age_max: settings.notification_max_age,
            keep: settings.notification_history,
            metrics: blocks.metrics,
        })
    }
}

/// Reads hydra.conf again: what it asks for now, and remarks on what was changed without effect.
///
/// # Errors
/// With what is wrong in it.
pub fn read_again(config: &Config, around: &Surroundings) -> Result<(Wanted, Vec<String>), Error> {
    let settings = Settings::load(&|name| std::env::var(name).ok(), &config.overrides)?;
    let wanted = Wanted::of(&settings, around.pool.clone(), around.http.clone())?;
    let before = &config.settings;
    let changed = [
        (
            "max-concurrent-notifications",
            settings.max_concurrent_notifications != before.max_concurrent_notifications,
        ),
        (
            "max_db_connections",
            settings.max_db_connections != before.max_db_connections,
        ),
        ("database", settings.database != before.database),
        ("stop_timeout", settings.stop_timeout != before.stop_timeout),
        ("services", settings.services != before.services),
        ("<hydra_notify>", wanted.metrics != config.metrics),
    ];
    let changed = changed.iter().filter(|(_, changed)| *changed);
    let remarks = changed.map(|(key, _)| format!("{key} was changed: that needs a restart"));
    Ok((wanted, remarks.collect()))
}

/// Whoever is told, for the log.
fn list(targets: &[&str]) -> String {
    match targets.is_empty() {
        true => "no plugin is configured".to_owned(),
        false => targets.join(", "),
    }
}

/// A notifier that has been looked over and can start.
pub struct Notifier {
    config: Config,
    wanted: Wanted,
}

impl Notifier {
    /// Looks at everything that would keep the notifier from working.
    ///
    /// # Errors
    /// When something does.
    pub fn prepare(mut config: Config) -> Result<Notifier, Error> {
        let settings = &config.settings;
        let pool = Pool::new(
            config.target.clone(),
            settings.max_db_connections,
            APPLICATION_NAME,
        );
        let wanted = Wanted::of(settings, pool.clone(), Arc::default())?;
        let mut client = config.target.connect(APPLICATION_NAME)?;
        for warning in schema::check_schema(&mut client)?.serve()? {
            log::warn!("{warning}");
        }
        if !config.beside {
            refuse_foreign(&mut client)?;
        }
        drop(client);
        locks::refuse_transaction_pooler(&config.target)?;
        config.metrics = wanted.metrics.clone();
        Ok(Notifier { config, wanted })
    }

    /// Serves until a signal ends it.
    ///
    /// # Errors
    /// When a thread cannot be started, or with `queued_only` when the database is away.
    pub fn run(self, signals: &Receiver<Signal>) -> Result<(), Error> {
        let settings = &self.config.settings;
        let threads = settings.max_concurrent_notifications as usize;
        // A job for each thread; the plan gives out no more.
        let (job_sender, jobs) = bounded::<Job>(threads);
        // Each thread has one answer under way.
        let (done_sender, done) = bounded::<Done>(threads * 2);
        let stopping = Arc::new(AtomicBool::new(false));
        let mut workers = Vec::new();
        for number in 1..=threads {
            let (jobs, done) = (jobs.clone(), done_sender.clone());
            let stopping = stopping.clone();
            let name = format!("notify-{number}");
            let worker = thread::spawn(name, move || work(&jobs, &done, &stopping));
            workers.push(worker.map_err(Error::System)?);
        }
        drop((jobs, done_sender));
        let plugins = self.wanted.plugins.iter();
        let names: Vec<&str> = plugins.map(|plugin| plugin.target()).collect();
        log::info!("notifier: {threads} threads; {}", list(&names));
        let mut dispatcher = Dispatcher::new(&self.wanted, threads, job_sender, done);
        let watchdog = match self.config.alone {
            true => Some(self.watch(&dispatcher.meters).map_err(Error::System)?),
            false => None,
        };
        if self.config.alone {
            systemd::notify("READY=1");
        }
        let http = self
            .serve_metrics(&dispatcher.meters)
            .map_err(Error::System)?;
        let result = self.serve(&mut dispatcher, signals);
        if self.config.alone {
            systemd::notify("STOPPING=1");
        }
        dispatcher.finish(settings.stop_timeout);
        stopping.store(true, Ordering::SeqCst);
        dispatcher.finish(LAST_CALLS);
        // Without jobs to come the threads leave; one that does not is left behind.
        let idle = dispatcher.running() == 0;
        drop(dispatcher);
        if idle {
            join(workers);
        }
        drop(watchdog);
        if let Some(http) = http {
            http.end();
        }
        log::info!("notifier: stopped");
        result
    }

    /// The watchdog of a process that does nothing else; it ends when what is returned is dropped.
    fn watch(&self, meters: &Arc<Meters>) -> std::io::Result<Sender<()>> {
        let (ending, ended) = bounded::<()>(0);
        let (meters, patience) = (meters.clone(), self.config.settings.watchdog_patience);
        thread::spawn("watchdog", move || {
            let status = || match (meters.config_error(), meters.is_active()) {
                (Some(error), _) => format!("hydra.conf is wrong, the old settings stay: {error}"),
                (None, true) => "telling whoever hydra.conf names".to_owned(),
                (None, false) => "standing by".to_owned(),
            };
            let watched = watchdog::Watched {
                patience,
                essential: &["main"],
                status: &status,
            };
            watchdog::watch(&watched, &ended);
        })?;
        Ok(ending)
    }

    /// `/metrics` and `/healthz`, if they are wanted.
    fn serve_metrics(&self, meters: &Arc<Meters>) -> std::io::Result<Option<Server>> {
        let Some(address) = &self.config.metrics else {
            return Ok(None);
        };
        let site = Site {
            name: "notify",
            path: "/metrics",
            place: Place::Address(address.clone()),
        };
        let (pool, meters) = (self.wanted.around.pool.clone(), meters.clone());
        let backlogs: Shared<Backlog> = Shared::default();
        let handler: Handler = Arc::new(move |_: &str, request: &Request| {
            match request.path.as_str() {
                "/metrics" => {
                    let backlog = backlogs.get(BACKLOG_AGE_MAX, BACKLOG_PATIENCE, || {
                        let mut conn = pool.get(BACKLOG_PATIENCE).ok()?;
                        ledger::backlog(&mut conn).ok()
                    });
                    Response::metrics(meters.page(backlog.as_ref(), unix_now()))
                }
                "/healthz" => Response::json(&serde_json::json!({
                    "status": "up", "active": meters.is_active(), "configError": meters.config_error(),
                })),
                _ => Response::error(Status::NotFound, "there are /metrics and /healthz"),
            }
        });
        Server::start(vec![site], handler, Arc::default()).map(Some)
    }

    fn serve(&self, dispatcher: &mut Dispatcher, signals: &Receiver<Signal>) -> Result<(), Error> {
        let mut said = false;
        loop {
            let why = match self.take_lock(&mut said) {
                Ok(Some(lock)) => {
                    said = false;
                    dispatcher.serve(&self.config, lock, signals)
                }
                Ok(None) if self.config.queued_only => {
                    log::warn!("notifier: another one is at work and tells what is pending");
                    return Ok(());
                }
                Ok(None) => Ok(Why::StandBy),
                Err(error) => Err(error),
            };
            let pause = match why {
                Ok(Why::Stop) => return Ok(()),
                Ok(Why::StandBy) => STAND_BY_LOOK,
                Err(error) if self.config.queued_only => return Err(error.into()),
                Err(error) if error.is_lost() => {
                    log::warn!("notifier: {error}; trying again");
                    AGAIN_AFTER
                }
                Err(error) => {
                    log::error!("notifier: {error}; trying again");
                    AGAIN_AFTER * 10
                }
            };
            heartbeat::idle("standing by");
            match signals.recv_timeout(pause) {
                Ok(Signal::Stop) | Err(RecvTimeoutError::Disconnected) => return Ok(()),
                Ok(Signal::Reload) => dispatcher.read_again(&self.config),
                Err(RecvTimeoutError::Timeout) => {}
            }
        }
    }

    fn take_lock(&self, said: &mut bool) -> Result<Option<Box<ServiceLock>>, DbError> {
        match ServiceLock::try_take(&self.config.target, Service::Notify, APPLICATION_NAME)? {
            Taken::Yes(lock) => Ok(Some(lock)),
            Taken::HeldBy(holders) => {
                if !*said {
                    let holders: Vec<String> = holders.iter().map(ToString::to_string).collect();
                    log::info!(
                        "notifier: standing by while another one is at work: {}",
                        holders.join(", ")
                    );
                    *said = true;
                }
                Ok(None)
            }
        }
    }
}

fn join(workers: Vec<JoinHandle<()>>) {
    for worker in workers {
        if worker.join().is_err() {
            log::warn!("a thread of the notifier panicked");
        }
    }
}

/// One thread of the pool: makes calls.
fn work(jobs: &Receiver<Job>, done: &Sender<Done>, stopping: &AtomicBool) {
    loop {
        heartbeat::idle("waiting for something to tell");
        let Ok(job) = jobs.recv() else { return };
        heartbeat::enter("telling", heartbeat::Patience::Unlimited);
        heartbeat::about(Some(job.plugin.target().into()));
        let is_stopping = || stopping.load(Ordering::SeqCst);
        let call = plugins::Call {
            event: &job.event,
            event_id: job.event_id,
            around: &job.around,
            stopping: &is_stopping,
            asked: Cell::new(false),
        };
        let began = std::time::Instant::now();
        let call = std::panic::AssertUnwindSafe(|| job.plugin.deliver(&call));
        let result = std::panic::catch_unwind(call).unwrap_or_else(|_| {
            Err(plugins::Failure::refused(
                "BUG: the plugin panicked; see the log",
            ))
        });
        heartbeat::about(None);
        let answer = Done {
            took: began.elapsed(),
            age_secs: unix_now() - job.at,
            channel: event::channel_of(job.event.name()).unwrap_or("other"),
            generation: job.generation,
            event_id: job.event_id,
            target: job.target,
            words: job.event.to_string(),
            result,
        };
        if done.send(answer).is_err() {
            return;
        }
    }
}

/// Hydra's own notifier at work on this database.
fn refuse_foreign(client: &mut postgres::Client) -> Result<(), Error> {
    let at_work = locks::foreign_at_work(client, Service::Notify, "notifier")?;
    at_work.map_or(Ok(()), |why| Err(Error::Running(why)))
}
