//! The evaluator's service: evaluates each jobset when it is due, one child process for each evaluation.
//!
//! | file | knows |
//! |---|---|
//! | `tables` | the thread that has the lock, listens, reads and writes |
//! | `evaluation` | one child: what it says, and what its end means |
//! | `report` | how things are: JSON, metrics, pages |
//!
//! Threads: the one that runs the service owns the schedule and waits for nobody; `eval-tables` and `eval-listen` have the
//! database; `eval-<id>` watches one child; `eval-room` looks at free space. What is decided when is in `schedule`.

pub mod evaluation;
pub mod report;
mod tables;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crossbeam_channel::{bounded, select, unbounded, Receiver, Sender};

use super::schedule::{Action, Event, How, Limits, Now, Schedule, Why};
use crate::base::text::{bytes_text, duration};
use crate::config::settings::{Override, Service as ServiceName, Settings};
use crate::db::connect::DbTarget;
use crate::db::evaluator::{self as rows, Begun, Finished};
use crate::db::guard::Guarded;
use crate::db::locks::{self, ServiceLock, Taken};
use crate::db::pool::Pool;
use crate::db::{schema, DbError};
use crate::model::{JobsetId, UnixSecs};
use crate::store::local::LocalStore;
use crate::sys::cgroup::{self, Delegated};
use crate::sys::clock::{unix_now, PlanClock};
use crate::sys::signals::Signal;
use crate::sys::{heartbeat, process, space, systemd, thread, watchdog};
use evaluation::{Ending, Order, Outcome, Program, Running, View, END_PATIENCE};
use report::Meters;
use tables::{News, Tables, Wish};

/// The name under which our sessions show in PostgreSQL.
pub const APPLICATION_NAME: &str = "hydrad-evaluator";
/// The schedule turns at least this often, whatever the clocks do.
const TURN_EVERY: Duration = Duration::from_secs(10);
/// After the patience of a stop: until children that had to be killed are gone and their ends recorded.
const LAST_CHILDREN: Duration = Duration::from_secs(12);
/// How long the last records and the end of the thread that writes them may take.
const LAST_RECORDS: Duration = Duration::from_secs(5);
/// Connections of the pool; the thread that uses them does one thing at a time.
const POOLED_MAX: u32 = 2;
/// What is left of this host's memory for everybody else, if the budget is not set: a quarter.
const MEMORY_SHARE: (u64, u64) = (3, 4);

/// Why the evaluator does not start.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Hydra's own evaluator is at work, or another one that does the same.
    #[error("{0}")]
    Running(String),
    /// The database cannot be used.
    #[error("{0}")]
    Database(#[from] DbError),
    /// A thread cannot be had.
    #[error("the system refuses {what}: {error}")]
    System {
        what: &'static str,
        error: std::io::Error,
    },
}

/// What the service needs to start.
#[derive(Clone)]
pub struct Config {
    pub settings: Settings,
    pub target: DbTarget,
    /// What the command line says of the settings, also when they are read again.
    pub overrides: Vec<Override>,
    /// The folder of `--state`, absolute: evaluations are to find the same database and settings.
    pub state: Option<PathBuf>,
    /// Start beside sessions of Hydra's own evaluator.
    pub beside: bool,
    /// It is the only service of this process, and speaks with systemd.
    pub alone: bool,
    /// Where evaluations get control groups of their own, if anywhere.
    pub groups: Option<Delegated>,
}

/// Takes what systemd has delegated to this process, for evaluations. To be called before anything else is started.
pub fn take_groups() -> Option<Delegated> {
    match Delegated::take(std::path::Path::new(cgroup::ROOT)) {
        Ok(Some(groups)) => Some(groups),
        Ok(None) => None,
        Err(why) => {
            log::warn!("evaluations get no control groups of their own: {why}");
            None
        }
    }
}

/// An evaluator that has been looked over and can start.
pub struct Evaluator {
    config: Config,
}

impl Evaluator {
    /// Looks at everything that would keep the evaluator from working.
    ///
    /// # Errors
    /// When something does.
    pub fn prepare(config: Config) -> Result<Evaluator, Error> {
        let mut client = config.target.connect(APPLICATION_NAME)?;
        for warning in schema::check_schema(&mut client)?.serve()? {
            log::warn!("{warning}");
        }
        if !config.beside {
            let at_work = locks::foreign_at_work(&mut client, ServiceName::Evaluator, "evaluator")?;
            at_work.map_or(Ok(()), |why| Err(Error::Running(why)))?;
        }
        drop(client);
        locks::refuse_transaction_pooler(&config.target)?;
        Ok(Evaluator { config })
    }

    /// Serves until a signal ends it.
    ///
    /// # Errors
    /// When a thread cannot be started.
    pub fn run(self, signals: &Receiver<Signal>) -> Result<(), Error> {
        let Config {
            settings, target, ..
        } = &self.config;
        // At most one message for each evaluation under way, a few for each notification gathered, and pages.
        let (to_core, inbox) = unbounded();
        // What the schedule wants is bounded by the number of jobsets, and each is answered before it is wished again.
        let (to_tables, wishes) = unbounded();
        let pool = Pool::new(target.clone(), POOLED_MAX, APPLICATION_NAME);
        let tables = Tables {
            target: target.clone(),
            pool,
            wishes,
            inbox: to_core.clone(),
            begun: Vec::new(),
            finished: Vec::new(),
        };
        let tables_thread = spawn("eval-tables", move || tables.run())?;
        let (room_ended, ended) = bounded::<()>(0);
        let watch = watch_room(settings, to_core.clone(), ended);
        let room = spawn("eval-room", watch)?;
        let (watchdog_ended, ended) = bounded::<()>(0);
        if self.config.alone {
            let (patience, asked) = (settings.watchdog_patience, to_core.clone());
            drop(spawn("watchdog", move || {
                let watched = watchdog::Watched {
                    patience,
                    essential: &["main"],
                    status: &|| report::one_line(&asked),
                };
                watchdog::watch(&watched, &ended);
            })?);
        }
        let http = report::serve(settings, to_core.clone()).map_err(|error| Error::System {
            what: "threads for HTTP",
            error,
        })?;
        let mut core = Core::new(&self.config, to_core, to_tables);
        core.say_hello();
        if self.config.alone {
            systemd::notify("READY=1");
        }
        core.serve(&self.config, signals, &inbox, &tables_thread);
        if self.config.alone {
            systemd::notify("STOPPING=1");
        }
        // Beside others the first one comes from whoever ends us, after what has told us all to stop.
        let more_signals = if self.config.alone { 1 } else { 2 };
        core.stop(&inbox, signals, more_signals);
        drop((room_ended, watchdog_ended));
        let until = Instant::now() + LAST_RECORDS;
        while !tables_thread.is_finished() && Instant::now() < until {
            std::thread::sleep(Duration::from_millis(5));
        }
        if let Some(http) = http {
            http.end();
        }
        // One that waits for a database or a file system that does not answer is left behind.
        drop((tables_thread, room));
        log::info!("evaluator: stopped");
        Ok(())
    }
}

fn spawn<T: Send + 'static>(
    name: &'static str,
    body: impl FnOnce() -> T + Send + 'static,
) -> Result<JoinHandle<T>, Error> {
    thread::spawn(name, body).map_err(|error| Error::System {
        what: "a thread",
        error,
    })
}

/// What comes to the thread with the schedule.
pub enum Inbox {
    News(News),
    /// An evaluation has ended.
    Ended(Box<Outcome>),
    /// There is too little room, and where; or enough again.
    Room(Option<String>),
    /// Somebody wants to see how things are.
    Look(Box<dyn FnOnce(&Core) + Send>),
}

/// Whether we are the active evaluator.
#[derive(Clone, PartialEq, Eq, Debug)]
enum Standing {
    Starting,
    Active,
    StandBy(String),
    Away(String),
}

/// The schedule and what is under way.
pub struct Core {
    schedule: Schedule,
    clock: PlanClock,
    started: Instant,
    running: BTreeMap<JobsetId, Running>,
    /// About to be started; and why it is not to be any more.
    starting: BTreeMap<JobsetId, Option<Why>>,
    /// Ends that are not recorded yet.
    unrecorded: usize,
    standing: Standing,
    meters: Meters,
    tables: Sender<Wish>,
    inbox: Sender<Inbox>,
    program: Program,
    groups: Option<Delegated>,
    memory_bytes_max: u64,
    read_every: Option<Duration>,
    read_at: Instant,
    stop_timeout: Duration,
    is_stopping: bool,
}

impl Core {
    fn new(config: &Config, inbox: Sender<Inbox>, tables: Sender<Wish>) -> Core {
        let settings = &config.settings;
        let limits = limits(settings);
        Core {
            memory_bytes_max: limits.memory_bytes_max,
            schedule: Schedule::new(limits),
            clock: PlanClock::start(),
            started: Instant::now(),
            running: BTreeMap::new(),
            starting: BTreeMap::new(),
            unrecorded: 0,
            standing: Standing::Starting,
            meters: Meters::default(),
            tables,
            inbox,
            program: Program::of(
                settings.eval_jobset_program.as_deref(),
                config.state.as_deref(),
            ),
            groups: config.groups.clone(),
            read_every: settings.queue_poll_interval,
            read_at: Instant::now(),
            stop_timeout: settings.stop_timeout,
            is_stopping: false,
        }
    }

    fn say_hello(&self) {
        let limits = self.schedule.limits();
        let (slots, by_memory) = limits.slots();
        log::info!(
            "evaluator: up to {slots} evaluations at a time{}; each is counted with {} of {}{}",
            match by_memory {
                true => format!(
                    ", since evaluator_memory_budget has no room for max_concurrent_evals = {}",
                    limits.evaluations_max
                ),
                false => String::new(),
            },
            bytes_text(limits.memory_bytes_each),
            bytes_text(limits.memory_bytes_max),
            match self.groups {
                Some(_) => "; each has a control group of its own",
                None => "",
            }
        );
        if limits.memory_bytes_each > limits.memory_bytes_max {
            log::warn!(
                "evaluator: one evaluation alone may use more than evaluator_memory_budget: lower evaluator_workers or \
                 evaluator_max_memory_size, or raise the budget"
            );
        }
    }

    fn now(&self) -> Now {
        Now {
            clock: self.clock.now(),
            wall: unix_now(),
        }
    }

    /// Turn after turn, until told to stop.
    fn serve(
        &mut self,
        config: &Config,
        signals: &Receiver<Signal>,
        inbox: &Receiver<Inbox>,
        tables: &JoinHandle<()>,
    ) {
        let mut config = config.clone();
        loop {
            if tables.is_finished() {
                log::error!("the thread 'eval-tables' has ended: leaving, so that the next start makes everything right");
                std::process::exit(1);
            }
            let now = self.now();
            let wake = self
                .schedule
                .wake_at(now)
                .map_or(u64::MAX, |at| at.since(now.clock));
            let pause = Duration::from_millis(wake.max(1)).min(TURN_EVERY);
            heartbeat::idle("waiting until a jobset is due");
            select! {
                recv(signals) -> signal => match signal {
                    Ok(Signal::Reload) => self.reload(&mut config),
                    Ok(Signal::Stop) | Err(_) => return,
                },
                recv(inbox) -> message => if let Ok(message) = message {
                    self.take(message);
                },
                default(pause) => self.turn(Vec::new()),
            }
            heartbeat::busy("deciding what is evaluated");
            if self
                .read_every
                .is_some_and(|every| self.read_at.elapsed() >= every)
            {
                self.wish(Wish::Read);
                self.read_at = Instant::now();
            }
        }
    }

    fn wish(&self, wish: Wish) {
        // The thread leaves when it is told to.
        let _ = self.tables.send(wish);
    }

    /// Turns the schedule and carries out what it decides.
    fn turn(&mut self, events: Vec<Event>) {
        let now = self.now();
        for action in self.schedule.turn(now, events) {
            match action {
                Action::Start { jobset } => {
                    self.starting.insert(jobset, None);
                    self.wish(Wish::Begin(jobset));
                }
                Action::End { jobset, why } => self.end(jobset, why),
                Action::CountUnfinished { jobset } => self.wish(Wish::CountUnfinished(jobset)),
                Action::Read => self.wish(Wish::Read),
            }
        }
    }

    fn end(&mut self, jobset: JobsetId, why: Why) {
        if let Some(not_any_more) = self.starting.get_mut(&jobset) {
            *not_any_more = Some(why);
        } else if let Some(running) = self.running.get_mut(&jobset) {
            log::info!(
                "{}:{}: its evaluation is ended: {}",
                running.begun.project,
                running.begun.name,
                why.words()
            );
            running.why = Some(why);
            running.view.end(match why {
                Why::Stopping => self.stop_timeout,
                _ => END_PATIENCE,
            });
        }
    }

    fn take(&mut self, message: Inbox) {
        match message {
            Inbox::News(news) => self.hear(news),
            Inbox::Ended(outcome) => self.ended(*outcome),
            Inbox::Room(why) => {
                match &why {
                    Some(why) => {
                        log::warn!("evaluator: nothing is started until there is more room: {why}")
                    }
                    None => log::info!("evaluator: there is room again"),
                }
                self.turn(vec![Event::Hold(why.map(Into::into))]);
            }
            Inbox::Look(look) => look(self),
        }
    }

    fn hear(&mut self, news: News) {
        match news {
            News::Active(jobsets) => {
                log::info!("evaluator: active; {} jobsets are enabled", jobsets.len());
                self.standing = Standing::Active;
                self.turn(vec![Event::Rows(jobsets)]);
            }
            News::Jobsets(jobsets) => self.turn(vec![Event::Rows(jobsets)]),
            News::StandBy(holders) => {
                self.standing = Standing::StandBy(holders);
                self.turn(vec![Event::Away, Event::TakenOver]);
            }
            News::Away(why) => {
                self.standing = Standing::Away(why);
                self.turn(vec![Event::Away]);
            }
            News::Unfinished { jobset, builds } => {
                self.turn(vec![Event::Unfinished { jobset, builds }]);
            }
            News::Begun(begun) => self.begun(begun),
            News::NotBegun(jobset) => {
                self.starting.remove(&jobset);
                let how = How::Ended;
                self.turn(vec![
                    Event::Ended { jobset, how },
                    Event::Recorded { jobset },
                ]);
            }
            News::Recorded(jobset) => {
                self.unrecorded = self.unrecorded.saturating_sub(1);
                self.turn(vec![Event::Recorded { jobset }]);
            }
            News::BuildsChanged => self.turn(vec![Event::BuildsChanged]),
            News::ReportWanted => {
                let report = report::json(self).to_string();
                self.wish(Wish::Report(report));
            }
        }
    }

    /// Its row says that it is being evaluated: so be it.
    fn begun(&mut self, begun: Begun) {
        let jobset = begun.jobset;
        if let Some(Some(_)) = self.starting.remove(&jobset) {
            self.finish(jobset, How::Ended, None, None);
            return;
        }
        let checked = self.schedule.row(jobset).map_or(0, |row| row.last_checked);
        log::info!(
            "starting evaluation of jobset ‘{}:{} (jobset#{jobset})’ (last checked {})",
            begun.project,
            begun.name,
            match checked {
                0 => "never".to_owned(),
                checked => format!("{} ago", duration((unix_now() - checked).max(0))),
            }
        );
        match self.start(&begun) {
            Ok(view) => {
                self.meters.started(unix_now());
                let running = Running {
                    begun,
                    since: unix_now(),
                    started: Instant::now(),
                    why: None,
                    view,
                };
                self.running.insert(jobset, running);
            }
            Err(error) => {
                let error = format!("evaluation failed: the system refuses a thread: {error}");
                log::error!("{}:{}: {error}", begun.project, begun.name);
                self.finish(jobset, How::Failed, begun.trigger, Some(error));
            }
        }
    }

    fn start(&self, begun: &Begun) -> std::io::Result<Arc<View>> {
        let view = Arc::new(View::new()?);
        let order = Order {
            begun: begun.clone(),
            program: self.program.clone(),
            groups: self.groups.clone(),
            memory_bytes_max: self.memory_bytes_max,
        };
        let (inner, inbox) = (view.clone(), self.inbox.clone());
        let jobset = begun.jobset;
        thread::spawn(format!("eval-{jobset}"), move || {
            let run = std::panic::AssertUnwindSafe(|| evaluation::run(&order, &inner));
            let outcome = std::panic::catch_unwind(run).unwrap_or_else(|_| {
                Outcome::not_started(jobset, "BUG: its thread panicked; see the log".into())
            });
            // Without a schedule nobody needs to know.
            let _ = inbox.send(Inbox::Ended(Box::new(outcome)));
        })?;
        Ok(view)
    }

    fn ended(&mut self, outcome: Outcome) {
        let jobset = outcome.jobset;
        let running = self.running.remove(&jobset);
        let running = running.expect("BUG: an evaluation ended that nobody started");
        let took = running.started.elapsed();
        let (result, error) = evaluation::judge(&outcome, running.why, took);
        let name = format!("{}:{}", running.begun.project, running.begun.name);
        let left_behind = outcome.end.as_ref().map_or(0, |end| end.left_behind);
        if left_behind > 0 {
            log::warn!(
                "{name}: its evaluation left {left_behind} processes behind; they were ended"
            );
        }
        if outcome.memory_kills > 0 {
            log::warn!(
                "{name}: the kernel ended {} of its processes for want of memory",
                outcome.memory_kills
            );
        }
        let took_words = duration(i64::try_from(took.as_secs()).unwrap_or(i64::MAX));
        let memory = match outcome.memory_bytes() {
            0 => String::new(),
            bytes => format!(", {}", bytes_text(bytes)),
        };
        match &error {
            Some(error) => {
                let first = error.lines().next().unwrap_or_default();
                log::error!("{name}: {first} (after {took_words}{memory})");
            }
            None => log::info!(
                "{name}: evaluation {} after {took_words}{memory}",
                result.word()
            ),
        }
        self.meters.ended(result, took, &outcome, unix_now());
        let served = match result.how() {
            How::Ended => None,
            _ => running.begun.trigger,
        };
        self.finish(jobset, result.how(), served, error);
    }

    fn finish(
        &mut self,
        jobset: JobsetId,
        how: How,
        served: Option<UnixSecs>,
        error: Option<String>,
    ) {
        self.unrecorded += 1;
        self.wish(Wish::Finish(Finished {
            jobset,
            served,
            error,
            at: unix_now(),
        }));
        self.turn(vec![Event::Ended { jobset, how }]);
    }

    fn reload(&mut self, config: &mut Config) {
        if config.alone {
            systemd::notify("RELOADING=1");
        }
        match Settings::load(&|name| std::env::var(name).ok(), &config.overrides) {
            Ok(settings) => {
                for (key, changed) in [
                    (
                        "evaluator_address",
                        settings.evaluator_address != config.settings.evaluator_address,
                    ),
                    ("database", settings.database != config.settings.database),
                    ("services", settings.services != config.settings.services),
                    (
                        "min_free_space",
                        settings.min_free_space_bytes != config.settings.min_free_space_bytes,
                    ),
                ] {
                    if changed {
                        log::warn!("evaluator: {key} was changed: that needs a restart");
                    }
                }
                let limits = limits(&settings);
                self.memory_bytes_max = limits.memory_bytes_max;
                self.program = Program::of(
                    settings.eval_jobset_program.as_deref(),
                    config.state.as_deref(),
                );
                self.read_every = settings.queue_poll_interval;
                self.stop_timeout = settings.stop_timeout;
                config.settings = settings;
                self.turn(vec![Event::Limits(limits)]);
                log::info!("evaluator: settings read again");
                self.say_hello();
            }
            Err(error) => {
                log::error!("evaluator: settings not read again, the old ones stay: {error}");
            }
        }
        if config.alone {
            systemd::notify("READY=1");
        }
    }

    /// Ends what is under way, and waits for that; with so many more signals to stop, not for long.
    fn stop(&mut self, inbox: &Receiver<Inbox>, signals: &Receiver<Signal>, mut more_signals: u32) {
        self.is_stopping = true;
        if !self.running.is_empty() {
            log::info!(
                "evaluator: stopping: {} evaluations are ended, and made again after the next start",
                self.running.len()
            );
        }
        self.turn(vec![Event::Stop]);
        let until = Instant::now() + self.stop_timeout + LAST_CHILDREN;
        while !self.running.is_empty() || !self.starting.is_empty() {
            heartbeat::idle("waiting for evaluations to end");
            select! {
                recv(inbox) -> message => if let Ok(message) = message { self.take(message); },
                recv(signals) -> signal => if signal == Ok(Signal::Stop) {
                    more_signals = more_signals.saturating_sub(1);
                    if more_signals == 0 {
                        log::info!("evaluator: another signal: what still runs is killed");
                        for running in self.running.values() {
                            running.view.end(Duration::ZERO);
                        }
                    }
                },
                default(until.saturating_duration_since(Instant::now())) => {
                    log::warn!("evaluator: leaving while {} evaluations do not end", self.running.len());
                    break;
                }
            }
        }
        let until = Instant::now() + LAST_RECORDS;
        while self.unrecorded > 0 && !matches!(self.standing, Standing::Away(_)) {
            match inbox.recv_deadline(until) {
                Ok(message) => self.take(message),
                Err(_) => break,
            }
        }
        self.wish(Wish::Leave);
    }
}

/// What the settings allow.
pub fn limits(settings: &Settings) -> Limits {
    let evaluator = &settings.evaluator;
    let each = evaluator
        .memory_max_bytes
        .saturating_mul(u64::from(evaluator.workers.max(1)));
    let budget = match settings.evaluator_memory_budget_bytes {
        0 => memory_of_host().map_or(u64::MAX, |bytes| bytes / MEMORY_SHARE.1 * MEMORY_SHARE.0),
        bytes => bytes,
    };
    let secs = |time: Duration| i64::try_from(time.as_secs()).unwrap_or(i64::MAX);
    let ms = |time: Duration| u64::try_from(time.as_millis()).unwrap_or(u64::MAX);
    Limits {
        evaluations_max: settings.max_concurrent_evals.max(1),
        memory_bytes_max: budget,
        memory_bytes_each: each,
        time_ms_max: settings.evaluator_timeout.map(ms),
        pause_secs_max: secs(settings.evaluator_backoff_max),
    }
}

/// What this host, or the control group we are in, has of memory.
fn memory_of_host() -> Option<u64> {
    let limits = [process::memory_bytes(), cgroup::memory_bytes_max()];
    limits.into_iter().flatten().min()
}

/// Looks at free space now and then, and says when that changes anything.
fn watch_room(
    settings: &Settings,
    inbox: Sender<Inbox>,
    ended: Receiver<()>,
) -> impl FnOnce() + Send + 'static {
    let min = settings.min_free_space_bytes;
    let every = settings.free_space_interval.max(Duration::from_secs(1));
    let store = LocalStore::from_env(
        &|name| std::env::var(name).ok(),
        &settings.nix_daemon_program,
    );
    let places = [
        std::path::PathBuf::from(&store.dir().0),
        settings.data_dir.clone(),
    ];
    move || {
        let mut is_short = false;
        loop {
            heartbeat::busy("looking at free space");
            let needed = space::needed(min, is_short);
            let short = places
                .iter()
                .filter(|_| min > 0)
                .filter_map(|place| Some((place, space::free_in(place)?)))
                .min_by_key(|(_, free)| *free)
                .filter(|(_, free)| *free < needed);
            let why = short.map(|(place, free)| {
                format!(
                    "only {} are free in {}, less than min_free_space ({})",
                    bytes_text(free),
                    place.display(),
                    bytes_text(needed)
                )
            });
            if why.is_some() != is_short {
                is_short = why.is_some();
                if inbox.send(Inbox::Room(why)).is_err() {
                    return;
                }
            }
            heartbeat::idle("waiting until free space is looked at again");
            match ended.recv_timeout(every) {
                Err(error) if error.is_timeout() => {}
                _ => return,
            }
        }
    }
}

/// How one jobset's evaluation ended that was asked for by hand.
#[derive(Debug)]
pub enum One {
    /// There is no such jobset, or it is disabled.
    Missing,
    /// In whatever way, and with what error.
    Ended(Option<String>),
    /// A signal ended it.
    Interrupted,
}

/// Evaluates this jobset once, whatever the schedule says, beside whatever evaluator is at work. The evaluation itself sees to it
/// that there are not two of one jobset at once.
///
/// # Errors
/// Of the database, and when a thread cannot be had.
pub fn evaluate_one(
    config: &Config,
    project: &str,
    jobset: &str,
    signals: &Receiver<Signal>,
) -> Result<One, Error> {
    let mut client = config.target.connect(APPLICATION_NAME)?;
    for warning in schema::check_schema(&mut client)?.serve()? {
        log::warn!("{warning}");
    }
    let standing = rows::standing(&mut client, project, jobset)?;
    drop(client);
    let pool = Pool::new(config.target.clone(), 1, APPLICATION_NAME);
    let db = Guarded::new(pool, ServiceName::Evaluator, None);
    let begun = match standing {
        Some(standing) => rows::begin(&db, standing.id, unix_now())?,
        None => None,
    };
    let Some(begun) = begun else {
        return Ok(One::Missing);
    };
    let system = |error| Error::System {
        what: "a thread",
        error,
    };
    let view = Arc::new(View::new().map_err(system)?);
    let order = Order {
        begun: begun.clone(),
        program: Program::of(
            config.settings.eval_jobset_program.as_deref(),
            config.state.as_deref(),
        ),
        groups: None,
        memory_bytes_max: u64::MAX,
    };
    let started = Instant::now();
    // One answer.
    let (sender, ended) = bounded(1);
    let inner = view.clone();
    let thread = thread::spawn("eval-one", move || {
        let _ = sender.send(evaluation::run(&order, &inner));
    });
    let thread = thread.map_err(system)?;
    let late = limits(&config.settings).time_ms_max;
    let late = late.and_then(|ms| started.checked_add(Duration::from_millis(ms)));
    let mut why = None;
    let outcome = loop {
        let left = late.map_or(TURN_EVERY, |at| {
            at.saturating_duration_since(Instant::now())
        });
        select! {
            recv(ended) -> outcome => break outcome.unwrap_or_else(|_| {
                Outcome::not_started(begun.jobset, "BUG: its thread panicked; see the log".into())
            }),
            recv(signals) -> signal => if signal == Ok(Signal::Stop) {
                why = Some(Why::Stopping);
                view.end(END_PATIENCE);
            },
            default(left.clamp(Duration::from_millis(1), TURN_EVERY)) => {
                if why.is_none() && late.is_some_and(|at| at <= Instant::now()) {
                    why = Some(Why::TimeLimit);
                    view.end(END_PATIENCE);
                }
            }
        }
    };
    let _ = thread.join();
    let (result, error) = evaluation::judge(&outcome, why, started.elapsed());
    let served = match result.how() {
        How::Ended => None,
        _ => begun.trigger,
    };
    let finished = Finished {
        jobset: begun.jobset,
        served,
        error: error.clone(),
        at: unix_now(),
    };
    rows::finish(&db, &finished)?;
    Ok(match (result, why) {
        (Ending::Ended, Some(Why::Stopping)) => One::Interrupted,
        _ => One::Ended(error),
    })
}

/// Hydra's `--unlock`: nothing looks as if it were being evaluated any more.
///
/// # Errors
/// [`Error::Running`] if an evaluator of hydrad's is at work; otherwise of the database.
pub fn unlock(target: &DbTarget) -> Result<u64, Error> {
    match ServiceLock::try_take(target, ServiceName::Evaluator, APPLICATION_NAME)? {
        Taken::Yes(mut lock) => {
            let pool = Pool::new(target.clone(), 1, APPLICATION_NAME);
            let db = Guarded::new(pool, ServiceName::Evaluator, Some(lock.proof()?));
            rows::remove_report(&db)?;
            Ok(rows::forget_starts(&db, &[])?)
        }
        Taken::HeldBy(holders) => {
            let holders: Vec<String> = holders.iter().map(ToString::to_string).collect();
            Err(Error::Running(holders.join(", ")))
        }
    }
}
