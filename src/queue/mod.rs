//! The queue runner: the plan in the middle, threads around it.
//!
//! This file owns the start and the end of the service and what its threads share; the decisions are in
//! `plan/`, the tables in `db/`, the bytes in `wire/` and `store/`.

pub mod adopt;
pub mod build_one;
pub mod connection;
pub mod driver;
pub mod explain;
pub mod fetch;
pub mod forget;
pub mod inspect;
pub mod log_upload;
pub mod machine;
pub mod meters;
pub mod monitor;
pub mod observe;
pub mod pages;
pub mod resolution;
pub mod room;
pub mod runs;
pub mod salvage;
pub mod sender;
pub mod shadow;
pub mod slot;
pub mod status;
pub mod trial;
pub mod trust;
pub mod types_hook;
pub mod watch_machines;

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, RwLock};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crossbeam_channel::{bounded, never, select, unbounded, Receiver, Sender, TrySendError};

use crate::base::lock::{lock, read, write};
use crate::config::machines::{LocalHost, MachinesFiles};
use crate::config::settings::{JobsetRepeats, Override, Service as ServiceName, Settings, StepCap};
use crate::db::connect::DbTarget;
use crate::db::leftovers;
use crate::db::listen::Listener;
use crate::db::locks::{self, LockProof, ServiceLock, Taken};
use crate::db::pool::Pool;
use crate::db::writer::{self, Writer, WriterCounters};
use crate::db::{schema, DbError};
use crate::model::{BuildId, Millis, Ticket, UnixSecs};
use crate::plan::event::{Cap, Event, Hold, PlanSettings, Repeats};
use crate::plan::{Plan, Snapshot};
use crate::store::destination::{Destination, Manner};
use crate::store::local::LocalStore;
use crate::store::logs::LogStore;
use crate::store::nix_conf;
use crate::store::presence::Lifetimes;
use crate::store::roots::GcRoots;
use crate::sys::clock::PlanClock;
use crate::sys::heartbeat::Patience;
use crate::sys::kill::KillSwitch;
use crate::sys::lockfile::LockFile;
use crate::sys::shared::Shared;
use crate::sys::signals::Signal;
use crate::sys::systemd::Sockets;
use crate::sys::{heartbeat, systemd, thread, watchdog};
use crate::web::server::Server;

use driver::{Inbox, Ways};
use fetch::Fetchers;
use log_upload::LogUploads;
use machine::{Keeping, Registry};
use meters::Meters;
use resolution::Resolution;
use runs::Runs;
use salvage::Leftovers;

/// The name under which our sessions show in PostgreSQL.
pub const APPLICATION_NAME: &str = "hydrad-queue-runner";

/// Messages that may wait for the plan. Whoever sends more waits; the plan waits for nobody.
const INBOX: usize = 8_192;
/// Inspectors; each uses one connection to the database while it asks.
const INSPECTORS: usize = 2;
/// Those who fetch what need not be built; few, since a substituter is often asked by each of them.
const FETCHER_NAMES: [&str; 4] = ["fetch-1", "fetch-2", "fetch-3", "fetch-4"];
/// How long the start waits for a connection to read the operators' orders.
const ORDERS_PATIENCE: Duration = Duration::from_secs(30);
/// How often it is made sure that every thread is there.
const LOOK_EVERY: Duration = Duration::from_secs(10);
/// How long whoever asks for the status waits for the plan.
const STATUS_PATIENCE: Duration = Duration::from_secs(10);
/// How long the last records may take after the last run.
const LAST_RECORDS: Duration = Duration::from_secs(10);
/// How long a thread may take to end what it is doing.
const LAST_THREADS: Duration = Duration::from_secs(20);
/// How long the last logs may take into the binary cache.
const LAST_LOGS: Duration = Duration::from_secs(30);

/// Why the queue runner does not start or does not go on.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The lock file or the database's lock is somebody else's.
    #[error("{0}")]
    Running(String),
    /// The database cannot be used.
    #[error("{0}")]
    Database(#[from] DbError),
    /// A folder or file of ours cannot be used.
    #[error("cannot use {what}: {error}")]
    Files { what: String, error: std::io::Error },
    /// A thread, pipe or signal handler cannot be had.
    #[error("the system refuses {what}: {error}")]
    System {
        what: &'static str,
        error: std::io::Error,
    },
    /// What was left busy could not be settled.
    #[error("cannot settle what the last process left: {0}")]
    Leftovers(String),
    /// A setting that cannot be served.
    #[error("{0}")]
    Setting(String),
}

/// Limits that a reload may change.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    pub max_log_size: u64,
    pub max_output_size: u64,
    /// Bytes that have to be free here, and on a machine, for steps to be started; 0: as many as there are.
    pub min_free_space: u64,
    pub machine_min_free_space: u64,
}

/// What the threads of the service share. No lock in it is held across a channel operation.
pub struct Context {
    pub store: Arc<LocalStore>,
    /// Where outputs go; often the local store too.
    pub dest: Arc<Destination>,
    /// Those who bring outputs there that need not be built; `None` if there is nothing for them to do.
    pub fetchers: Option<Fetchers>,
    pub logs: LogStore,
    /// Those who put logs into the binary cache; `None` if nobody asked for that.
    pub log_uploads: Option<LogUploads>,
    pub roots: GcRoots,
    pub pool: Pool,
    pub machines: Registry,
    pub writer: Sender<writer::Message>,
    pub runs: Runs,
    pub leftovers: Leftovers,
    pub traffic: slot::Traffic,
    /// The newest ticket up to which everything is committed.
    pub written: Arc<AtomicU64>,
    /// How often the queue is read without being told to; `None`: never.
    pub queue_poll: Option<Duration>,
    pub share_window_secs: u32,
    /// This host as its own machine: what `preferLocalBuild` is judged by.
    pub local_host: LocalHost,
    /// hydrad's own tables are read: orders, questions, emergencies.
    pub own_tables: bool,
    pub resolution: Resolution,
    /// Nothing but this build is wanted.
    pub build_one: Option<BuildId>,
    plan: Sender<Inbox>,
    target: DbTarget,
    stopping: AtomicBool,
    limits: RwLock<Limits>,
    lock: Mutex<Option<LockProof>>,
    /// Asked for by many, answered by the plan once for all of them.
    snapshots: Shared<Snapshot>,
    /// Builds whose end nobody has been told yet, and since when the oldest waits.
    pending: Shared<(u64, Option<UnixSecs>)>,
    pub meters: Meters,
    /// After so long a thread that stands still is named; `None`: none is.
    watchdog_patience: Option<Duration>,
    writer_counters: Arc<WriterCounters>,
    started: Instant,
}

impl Context {
    /// Gives the plan an event; waits while its inbox is full.
    pub fn tell_plan(&self, event: Event) {
        // After the plan has left nothing needs to be known any more.
        if let Err(TrySendError::Full(message)) = self.plan.try_send(Inbox::Event(event)) {
            heartbeat::during("waiting for the plan", Patience::Unlimited, || {
                let _ = self.plan.send(message);
            });
        }
    }

    pub fn is_stopping(&self) -> bool {
        self.stopping.load(Ordering::SeqCst)
    }

    pub fn limits(&self) -> Limits {
        *read(&self.limits)
    }

    /// The database's lock on our service is not held any more: nothing is written until it is again.
    pub fn lock_lost(&self) {
        *lock(&self.lock) = None;
    }

    pub fn lock_proof(&self) -> Option<LockProof> {
        *lock(&self.lock)
    }

    /// Opens the listening session and takes the service's lock.
    ///
    /// # Errors
    /// A message; also when another session holds the lock.
    pub fn listen_and_lock(&self) -> Result<Sessions, String> {
        let (sessions, proof) = listen_and_lock(&self.target).map_err(|error| error.to_string())?;
        *lock(&self.lock) = Some(proof);
        Ok(sessions)
    }

    /// A ticket whose record is not needed.
    pub fn void_ticket(&self, ticket: Ticket) {
        let entry = writer::Entry {
            ticket,
            body: writer::Body::Void,
        };
        // A writer that has left acknowledges nothing any more.
        let _ = self.writer.send(writer::Message::Write(vec![entry]));
    }

    /// Has the plan looked at by its own thread. `None`: it does not answer in time, or has left.
    pub fn look<T: Send + 'static>(
        &self,
        patience: Duration,
        look: impl FnOnce(&Plan, Millis) -> T + Send + 'static,
    ) -> Option<T> {
        // One answer.
        let (reply, answer) = bounded(1);
        let until = Instant::now() + patience;
        let look = Box::new(move |plan: &Plan, now: Millis| {
            // Whoever asked may have given up.
            let _ = reply.try_send(look(plan, now));
        });
        heartbeat::during("waiting for the plan", Patience::Unlimited, || {
            self.plan.send_deadline(Inbox::Look(look), until).ok()?;
            answer.recv_deadline(until).ok()
        })
    }

    /// How things are, at most so old. `None`: the plan does not answer in time.
    pub fn snapshot(&self, age_max: Duration, patience: Duration) -> Option<Arc<Snapshot>> {
        self.snapshots
            .get(age_max, patience, || self.look(patience, Plan::snapshot))
    }

    /// Asks the plan how things are and has the `SystemStatus` row replaced.
    pub fn dump_status(&self) {
        if let Some(snapshot) = self.snapshot(Duration::ZERO, STATUS_PATIENCE) {
            let json = status::system_status(self, &snapshot, self.started.elapsed());
            let _ = self.writer.send(writer::Message::Status(json));
        }
    }

    /// Threads that stand still beyond what their phase allows, each with a few words.
    pub fn stuck_threads(&self) -> Vec<String> {
        let beats = heartbeat::all();
        let now = Instant::now();
        self.watchdog_patience.map_or_else(Vec::new, |patience| {
            watchdog::stuck(now, patience, &beats)
                .map(watchdog::stands_still)
                .collect()
        })
    }

    /// What systemd shows of the service.
    fn one_line(&self) -> String {
        match self.snapshot(STATUS_PATIENCE, Duration::from_secs(1)) {
            Some(now) => format!(
                "{} builds queued; {} steps running, {} ready, {} waiting for inputs",
                now.builds_queued, now.runs_active, now.steps_runnable, now.steps_blocked
            ),
            None => "the plan is too busy to say how things are".into(),
        }
    }
}

/// The two sessions outside the pool.
pub struct Sessions {
    pub listener: Listener,
    pub lock: Box<ServiceLock>,
}

fn listen_and_lock(target: &DbTarget) -> Result<(Sessions, LockProof), Error> {
    let listener = Listener::connect(target, APPLICATION_NAME, &monitor::CHANNELS)?;
    let mut lock = take_service_lock(target)?;
    let proof = lock.proof()?;
    Ok((Sessions { listener, lock }, proof))
}

fn take_service_lock(target: &DbTarget) -> Result<Box<ServiceLock>, Error> {
    match ServiceLock::try_take(target, ServiceName::QueueRunner, APPLICATION_NAME)? {
        Taken::Yes(lock) => Ok(lock),
        Taken::HeldBy(holders) => {
            let holders: Vec<String> = holders.iter().map(ToString::to_string).collect();
            Err(Error::Running(format!(
                "another queue runner works on this database: {}; stop it first",
                if holders.is_empty() {
                    "it has just left, try again".to_owned()
                } else {
                    holders.join(", ")
                }
            )))
        }
    }
}

/// What the service needs to start.
pub struct Config {
    pub settings: Settings,
    pub target: DbTarget,
    /// What the command line says of the settings, also when they are read again.
    pub overrides: Vec<Override>,
    /// Start beside sessions of Hydra's own queue runner.
    pub beside: bool,
    /// Build this one and leave.
    pub build_one: Option<BuildId>,
    /// What systemd has opened for us.
    pub sockets: Mutex<Sockets>,
}

/// Runs the queue runner until a signal ends it.
///
/// # Errors
/// When it cannot start; once started it goes on until told to stop.
pub fn run(config: &Config, signals: &Receiver<Signal>) -> Result<(), Error> {
    raise_file_limit();
    let service = start(config)?;
    service.serve(config, signals);
    Ok(())
}

/// Ends what a queue runner that is gone left behind, for Hydra's `--unlock`: busy steps become aborted, and its report is
/// removed. Returns how many steps that were.
///
/// # Errors
/// [`Error::Running`] if a queue runner is at work; otherwise of lock files and database.
pub fn unlock(settings: &Settings, target: &DbTarget, beside: bool) -> Result<u64, Error> {
    let _files = take_lock_files(settings)?;
    let mut client = target.connect(APPLICATION_NAME)?;
    if !beside {
        refuse_foreign(&mut client)?;
    }
    let _lock = take_service_lock(target)?;
    Ok(leftovers::abort_all(&mut client)?)
}

/// Each running step needs half a dozen file descriptors: takes all that the system allows.
fn raise_file_limit() {
    let mut limit = libc::rlimit {
        rlim_cur: 0,
        rlim_max: 0,
    };
    // SAFETY: both calls read or write the structure given to them.
    unsafe {
        if libc::getrlimit(libc::RLIMIT_NOFILE, &mut limit) == 0 && limit.rlim_cur < limit.rlim_max
        {
            limit.rlim_cur = limit.rlim_max;
            libc::setrlimit(libc::RLIMIT_NOFILE, &limit);
        }
    }
}

struct Service {
    context: Arc<Context>,
    machines: Sender<watch_machines::Message>,
    monitor: Sender<monitor::Message>,
    /// Has free space looked at now; and ends what asks machines.
    room: (Sender<()>, Arc<KillSwitch>),
    /// Closed at the end.
    watchdog: Sender<()>,
    fetchers: Sender<()>,
    uploaders: Sender<()>,
    http: Option<Server>,
    threads: Vec<(&'static str, JoinHandle<()>)>,
    writer: JoinHandle<()>,
    plan: JoinHandle<()>,
    _locks: Vec<LockFile>,
}

fn start(config: &Config) -> Result<Service, Error> {
    let settings = &config.settings;
    let locks = take_lock_files(settings)?;
    let mut client = config.target.connect(APPLICATION_NAME)?;
    let schema = schema::check_schema(&mut client)?;
    for warning in schema.serve()? {
        log::warn!("{warning}");
    }
    if !config.beside {
        refuse_foreign(&mut client)?;
    }
    if let Some(id) = config.build_one {
        build_one::require_queued(&mut client, id)?;
    }
    warn_of_few_connections(&mut client, settings.max_db_connections)?;
    drop(client);
    locks::refuse_transaction_pooler(&config.target)?;
    let (sessions, proof) = listen_and_lock(&config.target)?;
    let context_parts = parts(settings)?;
    let pool = Pool::new(
        config.target.clone(),
        settings.max_db_connections,
        APPLICATION_NAME,
    );
    let (context, ends) = context(
        settings,
        &config.target,
        (pool, schema.features),
        context_parts,
        stores(settings, true)?,
        Some(proof),
        config.build_one,
    );
    let writer = start_writer(&context, ends.writer, context.written.clone())?;
    // Before the machines are known: nothing is started on one that is drained.
    let mut conn = context.pool.get(ORDERS_PATIENCE)?;
    let orders = crate::db::orders::read(conn.client())?;
    drop(conn);
    context.tell_plan(Event::Orders { orders });
    for body in adopt::settle(&context).map_err(Error::Leftovers)? {
        let _ = context
            .writer
            .send(writer::Message::Write(vec![writer::Entry {
                ticket: Ticket(0),
                body,
            }]));
    }
    start_threads(config, context, writer, ends.plan, sessions, locks)
}

/// The other ends of a context's channels.
struct Ends {
    plan: Receiver<Inbox>,
    writer: Receiver<writer::Message>,
}

/// What the threads share, and what they send to.
fn context(
    settings: &Settings,
    target: &DbTarget,
    (pool, features): (Pool, schema::Features),
    parts: (LogStore, GcRoots),
    stores: Stores,
    proof: Option<LockProof>,
    build_one: Option<BuildId>,
) -> (Arc<Context>, Ends) {
    let (plan_sender, plan_inbox) = bounded(INBOX);
    // Bounded by the plan's credit, so that the plan never waits for the writer.
    let (writer_sender, writer_inbox) = unbounded();
    let local_host = nix_conf::local_host();
    let context = Arc::new(Context {
        store: stores.local,
        dest: stores.dest,
        fetchers: stores.fetchers,
        log_uploads: stores.log_uploads,
        logs: parts.0,
        roots: parts.1,
        pool,
        machines: Registry::new(machine::Ways {
            deadlines: deadlines(settings),
            keeping: Keeping {
                idle_max: settings.connection_idle,
                age_max: settings.connection_age,
            },
            programs: programs(settings),
            key_dir: settings.data_dir.join("queue-runner").join("host-keys"),
        }),
        writer: writer_sender,
        runs: Runs::default(),
        leftovers: Leftovers::default(),
        traffic: slot::Traffic::default(),
        written: Arc::new(AtomicU64::new(0)),
        queue_poll: settings.queue_poll_interval,
        share_window_secs: PlanSettings::default().share_window_secs,
        resolution: Resolution::new(local_host.content_addressed, features),
        local_host,
        build_one,
        // An observer may have no rights on them, and they may not be there.
        own_tables: proof.is_some(),
        plan: plan_sender,
        target: target.clone(),
        stopping: AtomicBool::new(false),
        limits: RwLock::new(limits(settings)),
        lock: Mutex::new(proof),
        snapshots: Shared::default(),
        pending: Shared::default(),
        meters: Meters::default(),
        watchdog_patience: settings.watchdog_patience,
        writer_counters: Arc::default(),
        started: Instant::now(),
    });
    let ends = Ends {
        plan: plan_inbox,
        writer: writer_inbox,
    };
    (context, ends)
}

/// The two stores, and who fetches from one into the other.
struct Stores {
    local: Arc<LocalStore>,
    dest: Arc<Destination>,
    fetchers: Option<Fetchers>,
    log_uploads: Option<LogUploads>,
}

/// Opens the stores; without `writes` nothing is ever put there.
fn stores(settings: &Settings, writes: bool) -> Result<Stores, Error> {
    let local = Arc::new(local_store(settings));
    let manner = manner(settings, writes);
    let dest = Destination::open(settings.store_uri.as_deref(), local.clone(), &manner)
        .map_err(Error::Setting)?;
    let (fetchers, log_uploads) = match writes {
        true => (fetchers(settings, &dest)?, log_uploads(settings, &dest)?),
        false => (None, None),
    };
    Ok(Stores {
        local,
        dest: Arc::new(dest),
        fetchers,
        log_uploads,
    })
}

/// The way to the fetchers, if they may find anything.
fn fetchers(settings: &Settings, dest: &Destination) -> Result<Option<Fetchers>, Error> {
    if !settings.use_substitutes && dest.is_local() {
        return Ok(None);
    }
    let idle_max = settings.deadlines.substitute_idle;
    Fetchers::new(settings.use_substitutes, idle_max)
        .map(Some)
        .map_err(|error| Error::System {
            what: "a pipe",
            error,
        })
}

/// The way to those who upload logs, if there is a binary cache to upload them to.
fn log_uploads(settings: &Settings, dest: &Destination) -> Result<Option<LogUploads>, Error> {
    if !settings.upload_logs_to_binary_cache {
        return Ok(None);
    }
    if dest.cache().is_none() {
        log::warn!("upload_logs_to_binary_cache has no effect: store_uri is not a binary cache");
        return Ok(None);
    }
    let dir = settings.data_dir.join("queue-runner").join("log-uploads");
    LogUploads::open(&dir)
        .map(Some)
        .map_err(|error| Error::Files {
            what: dir.display().to_string(),
            error,
        })
}

/// The local store as the environment names it.
fn local_store(settings: &Settings) -> LocalStore {
    LocalStore::from_env(
        &|name| std::env::var(name).ok(),
        &settings.nix_daemon_program,
    )
    .limited(
        settings.max_local_worker_threads as usize,
        settings.deadlines.register,
    )
}

/// How the destination store is used.
/// The destination store as one who only looks sees it: nothing is made or written, one question is asked.
///
/// # Errors
/// A message that says what to mend.
pub fn look_at_destination(settings: &Settings) -> Result<Destination, String> {
    let local = Arc::new(local_store(settings));
    let nowhere = local.dir().nowhere();
    let uri = settings.store_uri.as_deref();
    let destination = Destination::open(uri, local, &manner(settings, false))?;
    destination.valid_paths(&[nowhere])?;
    Ok(destination)
}

fn manner(settings: &Settings, writes: bool) -> Manner {
    Manner {
        lifetimes: Lifetimes {
            positive: settings.narinfo_positive_ttl,
            negative: settings.narinfo_negative_ttl,
        },
        uploads_max: settings.max_local_worker_threads as usize,
        staging: settings.data_dir.join("queue-runner").join("staging"),
        copy_max: settings.deadlines.substitute_idle,
        writes,
    }
}

/// Hydra's own queue runner at work on this database.
fn refuse_foreign(client: &mut postgres::Client) -> Result<(), Error> {
    let at_work = locks::foreign_at_work(client, ServiceName::QueueRunner, "queue runner")?;
    at_work.map_or(Ok(()), |why| Err(Error::Running(why)))
}

fn warn_of_few_connections(client: &mut postgres::Client, pooled_max: u32) -> Result<(), Error> {
    let connections = locks::connections(client)?;
    if !connections.fit(pooled_max) {
        log::warn!(
            "PostgreSQL has room for {} connections, {} are in use, and hydrad takes up to {} (max_db_connections and {} \
             more): they may run out; lower max_db_connections, or raise max_connections in postgresql.conf",
            connections.room(),
            connections.others(),
            pooled_max + locks::CONNECTIONS_BESIDE_POOL,
            locks::CONNECTIONS_BESIDE_POOL,
        );
    }
    Ok(())
}

/// The lock files of Hydra's C++ queue runner and of upstream's newer one.
fn take_lock_files(settings: &Settings) -> Result<Vec<LockFile>, Error> {
    ["queue-runner/lock.lock", "queue-runner/lock"]
        .iter()
        .map(|name| {
            let path = settings.data_dir.join(name);
            match LockFile::try_take(&path) {
                Ok(Some(lock)) => Ok(lock),
                Ok(None) => Err(Error::Running(format!(
                    "a queue runner is already running: {} is locked; stop it first",
                    path.display()
                ))),
                Err(error) => Err(Error::Files {
                    what: path.display().to_string(),
                    error,
                }),
            }
        })
        .collect()
}

fn parts(settings: &Settings) -> Result<(LogStore, GcRoots), Error> {
    let files = |path: &std::path::Path| {
        let what = path.display().to_string();
        move |error| Error::Files { what, error }
    };
    let logs =
        LogStore::open(&settings.data_dir).map_err(files(&settings.data_dir.join("build-logs")))?;
    let roots = GcRoots::open(&settings.gc_roots_dir).map_err(files(&settings.gc_roots_dir))?;
    Ok((logs, roots))
}

/// The deadlines of conversations with machines.
pub fn deadlines(settings: &Settings) -> connection::Deadlines {
    let set = &settings.deadlines;
    connection::Deadlines {
        connect: set.connect + set.handshake,
        local_greeting: set.handshake,
        query: set.query,
        substitute: set.substitute_idle,
        send: set.send_idle,
        receive: set.receive_idle,
        row: set.row,
        shutdown: set.shutdown,
    }
}

/// The programs that lead to machines.
pub fn programs(settings: &Settings) -> connection::Programs {
    connection::Programs {
        nix_store: settings.nix_store_program.clone(),
        ssh: settings.ssh_program.clone(),
        ssh_options: settings.ssh_options.clone(),
        connect_secs: settings.deadlines.connect.as_secs(),
    }
}

fn limits(settings: &Settings) -> Limits {
    Limits {
        max_log_size: settings.max_log_size_bytes,
        max_output_size: settings.max_output_size_bytes,
        min_free_space: settings.min_free_space_bytes,
        machine_min_free_space: settings.machine_min_free_space_bytes,
    }
}

fn cap(cap: &StepCap) -> Cap {
    Cap {
        project: cap.project.as_str().into(),
        jobset: cap.jobset.as_deref().map(Into::into),
        steps: cap.steps,
    }
}

fn repeats(repeats: &JobsetRepeats) -> Repeats {
    Repeats {
        project: repeats.project.as_str().into(),
        jobset: repeats.jobset.as_str().into(),
        times: repeats.times,
    }
}

pub fn plan_settings(settings: &Settings) -> PlanSettings {
    PlanSettings {
        unsupported_ms_max: settings.max_unsupported_time.as_millis() as u64,
        tries_max: settings.max_tries,
        caps: settings.max_running_steps.iter().map(cap).collect(),
        repeats: settings.jobset_repeats.iter().map(repeats).collect(),
        // Without a pause a broken machine would be tried, and each try recorded, without end.
        retry_interval_ms: (settings.retry_interval.as_millis() as u64).max(1_000),
        stall_warning_ms: settings
            .stall_warning
            .map_or(0, |after| after.as_millis() as u64),
        probe_interval_ms: (settings.probe_interval.as_millis() as u64).max(1_000),
        fault_burst_ms: settings.fault_burst.as_millis() as u64,
        ..PlanSettings::default()
    }
}

fn spawn(
    name: &'static str,
    body: impl FnOnce() + Send + 'static,
) -> Result<JoinHandle<()>, Error> {
    thread::spawn(name, body).map_err(|error| Error::System {
        what: "a thread",
        error,
    })
}

fn start_writer(
    context: &Arc<Context>,
    inbox: Receiver<writer::Message>,
    position: Arc<AtomicU64>,
) -> Result<JoinHandle<()>, Error> {
    let [for_lock, for_loss, for_names, for_logs, for_hold, for_plan] =
        [(); 6].map(|()| Arc::downgrade(context));
    let writer = Writer::new(writer::Surroundings {
        pool: context.pool.clone(),
        lock: Arc::new(move || for_lock.upgrade()?.lock_proof()),
        lock_lost: Arc::new(move |proof| {
            // Unless it was taken anew meanwhile.
            if let Some(context) = for_loss.upgrade().filter(|c| c.lock_proof() == Some(proof)) {
                context.lock_lost();
            }
        }),
        machine_name: Arc::new(move |id| {
            for_names
                .upgrade()
                .map(|c| c.machines.name(id))
                .unwrap_or_default()
        }),
        log_path: Arc::new(move |run, drv, keep| {
            let Some(context) = for_logs.upgrade() else {
                return String::new();
            };
            let path = if keep {
                context.logs.keep(run, drv)
            } else {
                context.logs.path(drv)
            };
            path.display().to_string()
        }),
        away: Arc::new(move |reason| {
            if let Some(context) = for_hold.upgrade() {
                context.tell_plan(Event::Hold {
                    hold: Hold::Database,
                    why: reason.map(|reason| format!("PostgreSQL is away: {reason}").into()),
                });
            }
        }),
        written: Arc::new(move |upto| {
            if let Some(context) = for_plan.upgrade() {
                context.tell_plan(Event::Written { upto });
            }
        }),
        position,
        counters: context.writer_counters.clone(),
    });
    spawn("writer", move || writer.run(&inbox))
}

fn start_threads(
    config: &Config,
    context: Arc<Context>,
    writer: JoinHandle<()>,
    plan_inbox: Receiver<Inbox>,
    sessions: Sessions,
    locks: Vec<LockFile>,
) -> Result<Service, Error> {
    let mut threads = Vec::new();
    // At most `questions_max` questions are under way, by the plan's own count.
    let (question_sender, questions) = unbounded();
    // A handful of messages: what the plan wants read is bounded by its credit.
    let (monitor_sender, monitor_inbox) = unbounded();
    let (machines_sender, machines_inbox) = unbounded();
    let clock = PlanClock::start();
    let seed = clock.now().0 ^ (u64::from(std::process::id()) << 32);
    let plan = Plan::new(plan_settings(&config.settings), seed, clock.now());
    let ways = Ways {
        context: context.clone(),
        questions: question_sender,
        monitor: monitor_sender.clone(),
    };
    let plan = spawn("plan", move || {
        driver::drive(plan, clock, &plan_inbox, &ways)
    })?;
    let parsers = Arc::new(parsers()?);
    for name in ["inspect-1", "inspect-2"].iter().take(INSPECTORS) {
        let (context, parsers, questions) = (context.clone(), parsers.clone(), questions.clone());
        threads.push((
            *name,
            spawn(name, move || inspect::serve(&context, &parsers, &questions))?,
        ));
    }
    let (fetchers_ended, ended) = bounded(0);
    if context.fetchers.is_some() {
        for name in FETCHER_NAMES {
            let (context, ended) = (context.clone(), ended.clone());
            let body = move || {
                if let Some(fetchers) = &context.fetchers {
                    fetch::serve(&context, fetchers, &ended);
                }
            };
            threads.push((name, spawn(name, body)?));
        }
    }
    let (uploaders_ended, ended) = bounded(0);
    if context.log_uploads.is_some() {
        for (me, name) in log_upload::UPLOADERS.into_iter().enumerate() {
            let (context, ended) = (context.clone(), ended.clone());
            let body = move || {
                if let Some(uploads) = &context.log_uploads {
                    log_upload::serve(&context, uploads, me, &ended);
                }
            };
            threads.push((name, spawn(name, body)?));
        }
    }
    let monitor = monitor::Monitor::new(context.clone(), monitor_inbox);
    threads.push(("monitor", spawn("monitor", move || monitor.run())?));
    let (for_listener, to_monitor) = (context.clone(), monitor_sender.clone());
    threads.push((
        "listen",
        spawn("listen", move || {
            monitor::listen(&for_listener, sessions, &to_monitor)
        })?,
    ));
    // Before the machines are known: nothing is started where there is too little room.
    let places = room::places(&config.settings, &context);
    let mut looked = room::Room::default();
    looked.look_here(&context, &places);
    let room_kill = KillSwitch::new().map_err(|error| Error::System {
        what: "a kill switch",
        error,
    })?;
    let room_kill = Arc::new(room_kill);
    // One message says all there is to say.
    let (room_sender, room_inbox) = bounded(1);
    let (for_room, interval) = (context.clone(), config.settings.free_space_interval);
    let kill = room_kill.clone();
    threads.push((
        "room",
        spawn("room", move || {
            room::watch(&for_room, looked, &places, interval, &kill, &room_inbox)
        })?,
    ));
    let files = machines_files(context.local_host.clone());
    let for_machines = context.clone();
    threads.push((
        "machines",
        spawn("machines", move || {
            watch_machines::watch(&for_machines, files, &machines_inbox)
        })?,
    ));
    let (watchdog_ended, ended) = bounded(0);
    let (watched, patience) = (context.clone(), config.settings.watchdog_patience);
    threads.push((
        "watchdog",
        spawn("watchdog", move || {
            let watched = watchdog::Watched {
                patience,
                essential: &["plan"],
                status: &|| watched.one_line(),
            };
            watchdog::watch(&watched, &ended)
        })?,
    ));
    let sockets = std::mem::take(&mut *lock(&config.sockets));
    let http =
        pages::serve(&context, &config.settings, sockets).map_err(|error| Error::System {
            what: "threads for HTTP",
            error,
        })?;
    if let Some(command) = config.settings.machine_types_hook.clone() {
        let for_hook = context.clone();
        // Nobody waits for it, not even the stop: the command may take its time.
        drop(spawn("types-hook", move || {
            types_hook::watch(&for_hook, &command)
        })?);
    }
    let for_probe = context.clone();
    threads.push((
        "probe",
        spawn("probe", move || trust::probe_at_start(&for_probe))?,
    ));
    Ok(Service {
        context,
        machines: machines_sender,
        monitor: monitor_sender,
        room: (room_sender, room_kill),
        watchdog: watchdog_ended,
        fetchers: fetchers_ended,
        uploaders: uploaders_ended,
        http,
        threads,
        writer,
        plan,
        _locks: locks,
    })
}

/// The threads that scan derivations.
///
/// # Errors
/// When the system refuses threads.
pub fn parsers() -> Result<rayon::ThreadPool, Error> {
    let builder = rayon::ThreadPoolBuilder::new().spawn_handler(|body| {
        let name = format!("parse-{}", body.index());
        let run = move || {
            heartbeat::idle("waiting for derivations");
            body.run();
        };
        thread::spawn(name, run).map(drop)
    });
    builder.build().map_err(|error| Error::System {
        what: "threads for parsing",
        error: std::io::Error::other(error),
    })
}

/// The machines files as the environment names them.
pub fn machines_files(local: LocalHost) -> MachinesFiles {
    let remote_systems = std::env::var("NIX_REMOTE_SYSTEMS").ok();
    MachinesFiles::from_env(
        remote_systems.as_deref(),
        std::path::Path::new("/etc/nix/machines"),
        local,
    )
}

impl Service {
    /// Serves until told to stop, then stops in order.
    fn serve(self, config: &Config, signals: &Receiver<Signal>) {
        systemd::notify("READY=1");
        if !self.context.dest.is_local() {
            log::info!("outputs go to {}", self.context.dest.describe());
        }
        log::info!(
            "ready: {}, {}",
            config.target.describe(),
            self.context.store.describe()
        );
        let one_ended = match config.build_one {
            Some(id) => build_one::watch(&self.context, id),
            None => never(),
        };
        loop {
            heartbeat::idle("waiting for signals");
            select! {
                recv(signals) -> signal => match signal {
                    Ok(Signal::Reload) => self.reload(config),
                    Ok(Signal::Stop) | Err(_) => break,
                },
                recv(one_ended) -> _ => break,
                default(LOOK_EVERY) => self.leave_if_broken(),
            }
        }
        self.stop(config, signals);
    }

    /// A service that has lost a thread is left, so that the next start makes everything right.
    fn leave_if_broken(&self) {
        for (name, handle) in &self.threads {
            if handle.is_finished() && *name != "probe" {
                log::error!("the thread '{name}' has ended: leaving, so that the next start makes everything right");
                std::process::exit(1);
            }
        }
        if self.writer.is_finished() || self.plan.is_finished() {
            log::error!("the writer or the plan has ended: leaving, so that the next start makes everything right");
            std::process::exit(1);
        }
    }

    fn reload(&self, config: &Config) {
        heartbeat::busy("reading the settings");
        systemd::notify("RELOADING=1");
        match Settings::load(&|name| std::env::var(name).ok(), &config.overrides) {
            Ok(settings) => {
                *write(&self.context.limits) = limits(&settings);
                self.context
                    .tell_plan(Event::Settings(plan_settings(&settings)));
                log::info!(
                    "settings read again: size limits, tries, free space and max_unsupported_time are in effect, the others need a restart"
                );
            }
            Err(error) => log::error!("settings not read again, the old ones stay: {error}"),
        }
        let _ = self.machines.send(watch_machines::Message::Reload);
        let _ = self.monitor.send(monitor::Message::Again);
        // It is told already if there is a message.
        let _ = self.room.0.try_send(());
        systemd::notify("READY=1");
    }

    fn stop(self, config: &Config, signals: &Receiver<Signal>) {
        systemd::notify("STOPPING=1");
        heartbeat::idle("stopping");
        self.context.tell_plan(Event::Stop);
        let running = self.context.runs.count();
        let patience = config.settings.stop_timeout;
        if running > 0 {
            log::info!(
                "stopping: {running} steps may run on for {} s; a second signal ends them now",
                patience.as_secs()
            );
        }
        let until = Instant::now() + patience;
        let mut last_run = Instant::now();
        let mut idle;
        loop {
            let (reply, answer) = bounded(1);
            idle = self.context.plan.send(Inbox::Idle(reply)).is_ok()
                && answer.recv_timeout(LAST_RECORDS) == Ok(true);
            if self.context.runs.count() > 0 {
                last_run = Instant::now();
            }
            // Records alone, which PostgreSQL may not take for hours, are not waited for as long as steps are.
            if idle || Instant::now() >= until || last_run.elapsed() >= LAST_RECORDS {
                break;
            }
            if signals.recv_timeout(Duration::from_millis(50)) == Ok(Signal::Stop) {
                log::info!("a second signal: leaving now");
                break;
            }
        }
        let left = self.context.runs.count();
        if left > 0 {
            log::warn!("leaving {left} running steps; what they finish is adopted at the next start, the rest built again");
        }
        self.context.stopping.store(true, Ordering::SeqCst);
        let _ = self.context.writer.send(writer::Message::Stop {
            until: Instant::now() + LAST_RECORDS,
        });
        let _ = self.writer.join();
        if idle {
            remove_report(&self.context);
        }
        let _ = self.context.plan.send(Inbox::Leave);
        let _ = self.plan.join();
        drop(self.machines);
        drop(self.monitor);
        self.room.1.throw();
        drop(self.room);
        drop(self.watchdog);
        if let Some(uploads) = &self.context.log_uploads {
            wait_for_logs(uploads, signals);
        }
        drop(self.uploaders);
        drop(self.fetchers);
        if let Some(fetchers) = &self.context.fetchers {
            fetchers.end();
        }
        if let Some(http) = self.http {
            http.end();
        }
        for machine in self.context.machines.all() {
            machine.close_all();
        }
        let until = Instant::now() + LAST_THREADS;
        for (name, handle) in self.threads {
            while !handle.is_finished() && Instant::now() < until {
                std::thread::sleep(Duration::from_millis(5));
            }
            if !handle.is_finished() {
                // A store that takes its time; the next start finds everything as after a kill.
                log::warn!("leaving while '{name}' is still at work");
            } else if handle.join().is_err() {
                log::warn!("the thread '{name}' panicked");
            }
        }
        log::info!("stopped");
    }
}

/// What was handed over is to be in the cache; what is not by then the next start finds.
fn wait_for_logs(uploads: &LogUploads, signals: &Receiver<Signal>) {
    heartbeat::idle("waiting for logs to be uploaded");
    uploads.wait(Instant::now() + LAST_LOGS, || {
        signals.try_recv() == Ok(Signal::Stop)
    });
    let left = uploads.left();
    if left > 0 {
        log::warn!("{left} logs are not in the binary cache yet; the next start goes on with them");
    }
}

/// Nobody is up any more. Only while the lock is ours; what does not work at once is left to the next start.
fn remove_report(context: &Context) {
    if context.lock_proof().is_none() {
        return;
    }
    let removed = context
        .pool
        .get(Duration::from_secs(1))
        .and_then(|mut conn| leftovers::remove_report(&mut conn));
    if let Err(error) = removed {
        log::debug!("the report in SystemStatus stays: {error}");
    }
}
