//! The commands that need settings and database put together: `run` and `queue-runner`, `init`, `check`.

use std::panic::{catch_unwind, AssertUnwindSafe};
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::{anyhow, bail, Context as _, Result};
use crossbeam_channel::{unbounded, Receiver, Sender};

use super::check::{self, CheckInput, CheckRow, Mark};
use super::connect::{absolute, environment, is_seen_by_collector};
use super::{init as init_command, system_status, table};
use crate::cli::{CheckCommand, EvaluatorArgs, InitCommand, NotifyArgs, QueueRunnerArgs, RunArgs};
use crate::config::settings::{Override, Service, Settings};
use crate::db::connect::{self, DbTarget};
use crate::db::embedded::Embedded;
use crate::db::schema::{self, NewVersion, SchemaState};
use crate::eval::service as evaluator;
use crate::model::{BuildId, BuildStatus};
use crate::notify;
use crate::queue;
use crate::queue::build_one;
use crate::queue::trust::{self, Trust};
use crate::store::local::LocalStore;
use crate::store::nix_conf;
use crate::store::uri::StoreUri;
use crate::sys::cgroup::Delegated;
use crate::sys::signals::Signal;
use crate::sys::systemd::Sockets;
use crate::sys::{heartbeat, process, signals, thread};

/// How often the private PostgreSQL is looked at.
const POSTMASTER_LOOK_EVERY: Duration = Duration::from_secs(2);

/// The private PostgreSQL is being stopped on purpose.
static LEAVING: AtomicBool = AtomicBool::new(false);

/// `hydrad run`.
///
/// # Errors
/// When the service cannot start.
pub fn run(args: &RunArgs) -> Result<ExitCode> {
    serve(args, Vec::new(), Only::Configured)
}

/// `hydrad notify`.
///
/// # Errors
/// When the service cannot start, or with `--queued-only` when the database is away.
pub fn notify(args: &NotifyArgs) -> Result<ExitCode> {
    let only = Only::Notifier(args.queued_only);
    serve(&args.run, vec![alone(Service::Notify)], only)
}

/// `hydrad evaluator`, with the options of Hydra's program.
///
/// # Errors
/// When the service cannot start, or what was asked for cannot be done.
pub fn evaluate(args: &EvaluatorArgs) -> Result<ExitCode> {
    if args.unlock {
        return unlock_evaluator(&args.run);
    }
    match args.jobset.as_slice() {
        [project, jobset] => evaluate_one(&args.run, project, jobset),
        _ => serve(&args.run, vec![alone(Service::Evaluator)], Only::Evaluator),
    }
}

/// What makes a service the only one.
fn alone(service: Service) -> Override {
    Override {
        key: "services",
        value: service.name().to_owned(),
        option: service.name().to_owned(),
    }
}

/// `--unlock` of the evaluator. Exit code 1 if one is at work.
fn unlock_evaluator(args: &RunArgs) -> Result<ExitCode> {
    let settings = args.state.settings()?;
    let target = args.state.target(&settings)?;
    match evaluator::unlock(&target) {
        Ok(jobsets) => {
            log::info!(
                "unlocked: {jobsets} jobsets do not look as if they were being evaluated any more"
            );
            Ok(ExitCode::SUCCESS)
        }
        Err(evaluator::Error::Running(who)) => {
            eprintln!("error: an evaluator is at work: {who}");
            Ok(ExitCode::FAILURE)
        }
        Err(error) => Err(error.into()),
    }
}

/// The folder of `--state`, as an absolute path.
fn state_folder(args: &RunArgs) -> Result<Option<PathBuf>> {
    args.state.state.as_deref().map(absolute).transpose()
}

/// `hydrad evaluator PROJECT JOBSET`: exit code 0 however it ended, as in C++.
fn evaluate_one(args: &RunArgs, project: &str, jobset: &str) -> Result<ExitCode> {
    let signals = signals::listen().context("cannot listen to signals")?;
    let settings = args.state.settings()?;
    let config = evaluator::Config {
        target: args.state.target(&settings)?,
        settings,
        overrides: Vec::new(),
        state: state_folder(args)?,
        beside: true,
        alone: false,
        groups: None,
    };
    match evaluator::evaluate_one(&config, project, jobset, &signals)? {
        evaluator::One::Missing => {
            eprintln!("error: the specified jobset does not exist or is disabled");
            Ok(ExitCode::FAILURE)
        }
        evaluator::One::Interrupted => {
            eprintln!("error: interrupted by the user");
            Ok(ExitCode::FAILURE)
        }
        evaluator::One::Ended(error) => {
            if let Some(error) = error {
                eprintln!("error: {error}");
            }
            Ok(ExitCode::SUCCESS)
        }
    }
}

/// What of the services is meant.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Only {
    /// Those of the settings.
    Configured,
    QueueRunner(Option<BuildId>),
    /// With `--queued-only` or without.
    Notifier(bool),
    Evaluator,
}

impl Only {
    fn has(self, service: Service, settings: &Settings) -> bool {
        match self {
            Only::Configured => settings.services.contains(&service),
            Only::QueueRunner(_) => service == Service::QueueRunner,
            Only::Notifier(_) => service == Service::Notify,
            Only::Evaluator => service == Service::Evaluator,
        }
    }
}

/// A service that runs beside another one of this process.
struct Beside {
    name: &'static str,
    signals: Sender<Signal>,
    stopping: Arc<AtomicBool>,
    thread: JoinHandle<Result<()>>,
}

impl Beside {
    fn start(
        name: &'static str,
        serve: impl FnOnce(&Receiver<Signal>) -> Result<()> + Send + 'static,
    ) -> Result<Beside> {
        // A signal or two.
        let (signals, inbox) = unbounded();
        let stopping = Arc::new(AtomicBool::new(false));
        let is_stopping = stopping.clone();
        let body = move || {
            let served = AssertUnwindSafe(|| serve(&inbox));
            let result = catch_unwind(served).unwrap_or_else(|_| Err(anyhow!("BUG: it panicked")));
            // A signal to stop may have come to it before it came to us.
            if let (Err(error), false) = (&result, is_stopping.load(Ordering::SeqCst)) {
                log::error!("the service '{name}' has ended: {error:#}; leaving, so that the next start makes everything right");
                std::process::exit(1);
            }
            result
        };
        let thread = thread::spawn(name, body).context("the system refuses a thread")?;
        Ok(Beside {
            name,
            signals,
            stopping,
            thread,
        })
    }

    /// Ends it and waits for that.
    fn stop(self) -> Result<()> {
        self.stopping.store(true, Ordering::SeqCst);
        let _ = self.signals.send(Signal::Stop);
        match self.thread.join() {
            Ok(result) => result,
            Err(_) => bail!("the service '{}' panicked", self.name),
        }
    }
}

/// `hydrad queue-runner`, with the options of Hydra's program.
///
/// # Errors
/// When the service cannot start, or what was asked for cannot be done.
pub fn queue_runner(args: &QueueRunnerArgs) -> Result<ExitCode> {
    // In C++ too it is the first that counts.
    if args.status {
        return system_status::print(&args.run.state);
    }
    if args.unlock {
        return unlock(&args.run);
    }
    if args.shadow {
        return shadow(args);
    }
    let metrics = args.prometheus_address.iter().map(|address| Override {
        key: "queue_runner_metrics_address",
        value: address.clone(),
        option: "--prometheus-address".to_owned(),
    });
    let only = Only::QueueRunner(args.build_one.map(BuildId));
    serve(&args.run, metrics.collect(), only)
}

/// `hydrad queue-runner --shadow`.
fn shadow(args: &QueueRunnerArgs) -> Result<ExitCode> {
    let signals = signals::listen().context("cannot listen to signals")?;
    let settings = args.run.state.settings()?;
    let target = args.run.state.target(&settings)?;
    let options = queue::shadow::Options {
        grace: Duration::from_secs(args.grace),
        summary_every: Duration::from_secs(args.summary_every.saturating_mul(60)),
        json: args.json,
    };
    let alike = queue::shadow::run(&settings, &target, options, &signals)?;
    Ok(ExitCode::from(u8::from(!alike)))
}

fn serve(args: &RunArgs, overrides: Vec<Override>, only: Only) -> Result<ExitCode> {
    heartbeat::register("main");
    // Before anything is opened that could have one of their numbers.
    let sockets = Mutex::new(Sockets::take());
    // So early that a signal during a long start is not lost.
    let signals = signals::listen().context("cannot listen to signals")?;
    let overrides = [args.state.overrides()?, overrides].concat();
    let settings = Settings::load(&environment, &overrides)?;
    // Before anything is started that would have to move.
    let groups = match only.has(Service::Evaluator, &settings) {
        true => evaluator::take_groups(),
        false => None,
    };
    let (target, embedded) = match &args.state.state {
        None => (DbTarget::from_env(&environment, &settings)?, None),
        Some(dir) => {
            connect::refuse_two_databases(&environment, &settings)?;
            let embedded = Embedded::start(&absolute(dir)?)?;
            let target = embedded.target();
            init_if_empty(&target)?;
            watch_postmaster(&embedded);
            (target, Some(embedded))
        }
    };
    if !is_seen_by_collector(&settings.gc_roots_dir) {
        log::warn!("{}", unseen_roots(&settings));
    }
    let code = serve_all(
        args, settings, target, overrides, sockets, only, groups, &signals,
    );
    if let Some(embedded) = embedded {
        LEAVING.store(true, Ordering::SeqCst);
        embedded.stop()?;
    }
    code
}

/// Runs what is meant of the services, to its end.
#[allow(clippy::too_many_arguments)] // what `serve` has found out
fn serve_all(
    args: &RunArgs,
    settings: Settings,
    target: DbTarget,
    overrides: Vec<Override>,
    sockets: Mutex<Sockets>,
    only: Only,
    groups: Option<Delegated>,
    signals: &Receiver<Signal>,
) -> Result<ExitCode> {
    let has = |service| only.has(service, &settings);
    let is_queue_runner = has(Service::QueueRunner);
    let state = state_folder(args)?;
    let evaluator = has(Service::Evaluator).then(|| evaluator::Config {
        settings: settings.clone(),
        target: target.clone(),
        overrides: overrides.clone(),
        state,
        beside: args.beside,
        alone: !is_queue_runner,
        groups,
    });
    let notifier = has(Service::Notify).then(|| notify::Config {
        settings: settings.clone(),
        overrides: overrides.clone(),
        target: target.clone(),
        metrics: None,
        beside: args.beside,
        queued_only: only == Only::Notifier(true),
        alone: !is_queue_runner && evaluator.is_none(),
    });
    let mut evaluator = evaluator.map(evaluator::Evaluator::prepare).transpose()?;
    let mut notifier = notifier.map(notify::Notifier::prepare).transpose()?;
    // One has this thread: the first of them that there is. The others hear what it hears.
    let mut besides = Vec::new();
    if let Some(evaluator) = evaluator.take_if(|_| is_queue_runner) {
        let serve = move |signals: &Receiver<Signal>| Ok(evaluator.run(signals)?);
        besides.push(Beside::start("evaluator", serve)?);
    }
    if let Some(notifier) = notifier.take_if(|_| is_queue_runner || evaluator.is_some()) {
        let serve = move |signals: &Receiver<Signal>| Ok(notifier.run(signals)?);
        besides.push(Beside::start("notify", serve)?);
    }
    let (last, others): (Vec<&Beside>, Vec<&Beside>) =
        besides.iter().partition(|beside| beside.name == "notify");
    let ways = |besides: Vec<&Beside>| besides.iter().map(|b| b.signals.clone()).collect();
    let signals = &signals::shared(signals, ways(last), ways(others))
        .context("cannot share signals between services")?;
    let code = match (evaluator, notifier) {
        (Some(evaluator), _) => evaluator
            .run(signals)
            .map(|()| ExitCode::SUCCESS)
            .map_err(Into::into),
        (None, Some(notifier)) => notifier
            .run(signals)
            .map(|()| ExitCode::SUCCESS)
            .map_err(Into::into),
        (None, None) => run_queue(args, settings, target, overrides, sockets, only, signals),
    };
    // The notifier ends last: it tells of what the last steps led to.
    let stopped: Vec<Result<()>> = besides.into_iter().map(Beside::stop).collect();
    let code = code?;
    stopped.into_iter().collect::<Result<()>>()?;
    Ok(code)
}

/// Runs the queue runner to its end.
fn run_queue(
    args: &RunArgs,
    settings: Settings,
    target: DbTarget,
    overrides: Vec<Override>,
    sockets: Mutex<Sockets>,
    only: Only,
    signals: &Receiver<Signal>,
) -> Result<ExitCode> {
    let build_one = match only {
        Only::QueueRunner(build_one) => build_one,
        _ => None,
    };
    let config = queue::Config {
        overrides,
        settings,
        target,
        beside: args.beside,
        build_one,
        sockets,
    };
    queue::run(&config, signals)?;
    match build_one {
        Some(id) => tell_of_one(&config.target, id),
        None => Ok(ExitCode::SUCCESS),
    }
}

/// How the build of `--build-one` ended: 0 as in C++ also for a failed one, 1 for one that could not be tried.
fn tell_of_one(target: &DbTarget, id: BuildId) -> Result<ExitCode> {
    let mut client = target.connect(queue::APPLICATION_NAME)?;
    let (text, code) = match build_one::state(&mut client, id)? {
        None => ("was deleted".to_owned(), ExitCode::FAILURE),
        Some(None) => (
            "has not ended; it stays queued".to_owned(),
            ExitCode::FAILURE,
        ),
        Some(Some(status)) => (
            status.text().to_owned(),
            match status {
                BuildStatus::Unsupported => ExitCode::FAILURE,
                _ => ExitCode::SUCCESS,
            },
        ),
    };
    println!("build {id}: {text}");
    Ok(code)
}

/// `--unlock`. Exit code 1 if a queue runner is at work, as in C++.
fn unlock(args: &RunArgs) -> Result<ExitCode> {
    let settings = args.state.settings()?;
    let target = args.state.target(&settings)?;
    match queue::unlock(&settings, &target, args.beside) {
        Ok(steps) => {
            log::info!("unlocked: {steps} steps that were left busy are aborted now");
            Ok(ExitCode::SUCCESS)
        }
        Err(queue::Error::Running(why)) => {
            eprintln!("error: hydra-queue-runner is currently running: {why}");
            Ok(ExitCode::FAILURE)
        }
        Err(error) => Err(error.into()),
    }
}

/// What is wrong with a folder of GC roots that Nix does not look at.
fn unseen_roots(settings: &Settings) -> String {
    format!(
        "gc_roots_dir = {} is not below $NIX_STATE_DIR/gcroots: nix-collect-garbage would delete queued derivations and \
         outputs; make a folder there that this user may write, and name it in hydra.conf",
        settings.gc_roots_dir.display()
    )
}

/// Without its private PostgreSQL a service can do nothing but wait, and nobody else starts one: it leaves, and the next
/// start makes everything right.
fn watch_postmaster(embedded: &Embedded) {
    let Some(pid) = embedded.pid() else { return };
    let watching = thread::spawn("postgres-watch", move || loop {
        std::thread::sleep(POSTMASTER_LOOK_EVERY);
        if !process::is_alive(pid) && !LEAVING.load(Ordering::SeqCst) {
            log::error!(
                "the private PostgreSQL (process {pid}) has ended, postgres.log says why; leaving"
            );
            std::process::exit(1);
        }
    });
    if let Err(error) = watching {
        log::warn!("nobody watches the private PostgreSQL: {error}");
    }
}

/// The private database of a new state folder gets its tables.
fn init_if_empty(target: &DbTarget) -> Result<()> {
    let mut client = target.connect(queue::APPLICATION_NAME)?;
    let found = schema::check_schema(&mut client)?;
    if found.state == SchemaState::Empty || found.serve().is_err() {
        schema::init(&mut client, NewVersion::V87)?;
    }
    Ok(())
}

/// `hydrad init`.
///
/// # Errors
/// When nothing was made or changed.
pub fn init(command: &InitCommand) -> Result<ExitCode> {
    let settings = command.state.settings()?;
    let target = command.state.target(&settings)?;
    init_command::run(&command.init, &target, &mut std::io::stdout())?;
    Ok(ExitCode::SUCCESS)
}

/// `hydrad check`.
///
/// # Errors
/// When the report cannot be written.
pub fn check(command: &CheckCommand) -> Result<ExitCode> {
    let overrides = command.state.overrides()?;
    let target = match &command.state.state {
        Some(_) => Some(command.state.target(&command.state.settings()?)?),
        None => None,
    };
    let settings = command.state.settings();
    let store_rows_of = || settings.as_ref().map_or_else(|_| Vec::new(), store_rows);
    let input = CheckInput {
        env: &environment,
        overrides: &overrides,
        target,
        local: nix_conf::local_host(),
        machines_path: std::path::Path::new("/etc/nix/machines"),
        store_rows: &store_rows_of,
    };
    let code = check::run(
        &command.check,
        &input,
        &mut std::io::stdout(),
        table::colour(),
    )?;
    Ok(ExitCode::from(code))
}

/// Where outputs go, if not into the local store: whether it can be read, and, as far as that shows without writing,
/// whether it can be written.
fn destination_rows(settings: &Settings, rows: &mut Vec<CheckRow>) {
    const SECTION: &str = "store";
    let Some(uri) = settings.store_uri.as_deref() else {
        return;
    };
    let mut push = |what: &str, value: String, mark: Mark, note: String| {
        rows.push(CheckRow::new(SECTION, what, value, mark, note));
    };
    let destination = match queue::look_at_destination(settings) {
        Ok(destination) => destination,
        Err(why) => {
            let why = why
                .trim_start_matches(&format!("store_uri = {uri}: "))
                .to_owned();
            return push("destination", uri.to_owned(), Mark::Problem, why);
        }
    };
    if destination.is_local() {
        return;
    }
    let answered = "answers; what is sent there cannot be tried without writing".to_owned();
    let (mark, note) = match StoreUri::parse(uri) {
        Ok(uri) if uri.scheme == "file" => {
            check::folder_mark(std::path::Path::new(&uri.place), String::new())
        }
        _ => (Mark::Ok, answered),
    };
    push("destination", destination.describe(), mark, note);
    if destination
        .cache()
        .is_some_and(|cache| cache.options().keys.is_empty())
    {
        let note =
            "no secret-key: who fetches from this cache must not require signatures".to_owned();
        push("signatures", "none".to_owned(), Mark::Note, note);
    }
}

/// What can be said of the local store: how it is reached and whether it lets us build.
fn store_rows(settings: &Settings) -> Vec<CheckRow> {
    const SECTION: &str = "store";
    let store = LocalStore::from_env(&environment, &settings.nix_daemon_program);
    let reached = match store.query(&store.dir().nowhere()) {
        Ok(_) => CheckRow::new(SECTION, "local store", store.describe(), Mark::Ok, ""),
        Err(message) => CheckRow::new(
            SECTION,
            "local store",
            store.describe(),
            Mark::Problem,
            message,
        ),
    };
    let trusted = match trust::probe(&store.dir().0, &queue::programs(settings)) {
        Trust::Trusted => CheckRow::new(
            SECTION,
            "trusted",
            "yes",
            Mark::Ok,
            "this user may build and register paths",
        ),
        Trust::Refused(message) => CheckRow::new(
            SECTION,
            "trusted",
            "no",
            Mark::Problem,
            format!("{message}; {}", trust::advice()),
        ),
        Trust::Unknown(message) => CheckRow::new(SECTION, "trusted", "", Mark::Unknown, message),
    };
    let mut rows = vec![reached, trusted];
    destination_rows(settings, &mut rows);
    if !is_seen_by_collector(&settings.gc_roots_dir) {
        let folder = settings.gc_roots_dir.display().to_string();
        rows.push(CheckRow::new(
            SECTION,
            "GC roots",
            folder,
            Mark::Warning,
            unseen_roots(settings),
        ));
    }
    rows
}
