//! One evaluation of one jobset: `hydrad eval-jobset`, in a process of its own.
//!
//! | file | knows |
//! |---|---|
//! | `arguments` | what the expression is given, and the hash of that: pure |
//! | `flake` | how a flake is locked |
//! | `declaration` | where a declarative project's specification is |
//! | `builds` | which builds are new and which stay: pure |
//! | `writing` | the transaction |
//! | `progress` | how far it is, for people and for who started it |
//!
//! **Its life.** The lock of the jobset (a second evaluation waits), what a killed evaluation left unfinished, `eval_started`; the
//! specification of a declarative project, the inputs, the flake; the hash, compared with that of the newest evaluation; the jobs;
//! one transaction; then, a thousand at a time, which builds are current. Nothing is visible before the commit, and a SIGKILL at any
//! moment leaves either nothing or all of it; what comes after the commit the next evaluation does if need be.
//!
//! **Its end.** Each has its row, its message there and its notification:
//!
//! | end | jobset's row | notification |
//! |---|---|---|
//! | an input cannot be fetched | `fetchErrorMsg` | `eval_failed` |
//! | nothing changed | what the newest evaluation had said | `eval_cached` |
//! | it failed as a whole | `errorMsg` | `eval_failed` |
//! | jobs were evaluated | `errorMsg`: what is wrong with jobs, or nothing | `eval_added`, and of its builds |
//! | jobsets were made from a specification | `errorMsg`: what is wrong with jobsets, or nothing | `eval_failed` if something is |
//!
//! Whoever starts it sees from the exit code (0, 1 if it failed as a whole) that the row says what happened; any other, or a
//! signal, says that the row does not.

pub mod arguments;
mod builds;
mod declaration;
mod flake;
pub mod progress;
pub mod writing;

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use serde_json::{Map, Value};

use self::arguments::Inputs;
use self::progress::{Phase, Progress};
pub use self::writing::{Found, Written};
use super::input::{FetchedInput, InputSpec};
use super::inputs::{self, Fetcher};
use super::job::{Job, Source};
use super::jobs::{self, EvalError, Request};
use crate::base::text;
use crate::config::declarative::{self, JobsetSpec, SpecInput, Specification, JOBSETS};
use crate::config::settings::{EvaluatorProgram, Settings};
use crate::db::connect::DbTarget;
use crate::db::declarative::{self as declared, Applied, Mode};
use crate::db::evaluations::{self, EvaluationRow, Evaluator, Jobset, Latest, Session};
use crate::db::schema::Features;
use crate::db::DbError;
use crate::store::local::LocalStore;
use crate::sys::statsd::Statsd;

/// What the session in PostgreSQL is called.
pub const APPLICATION_NAME: &str = "hydra-eval-jobset";
/// Bytes of an error that a row gets at most.
const ERROR_BYTES_MAX: usize = 5 << 20;

/// What is to be done.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Order {
    pub project: String,
    pub jobset: String,
    /// Evaluate, and say what was found; write and announce nothing.
    pub dry_run: bool,
    /// Evaluate though nothing changed.
    pub force: bool,
}

/// Where it is done.
pub struct Place<'a> {
    pub settings: &'a Settings,
    pub target: &'a DbTarget,
    pub store: &'a LocalStore,
    /// Or why no input can be fetched.
    pub fetcher: Result<Fetcher, String>,
    pub features: Features,
    pub statsd: &'a Statsd,
}

/// How it ended. All but a dry run's is in the jobset's row.
#[derive(Clone, PartialEq, Debug)]
pub enum Ending {
    Unfetched {
        error: String,
    },
    Unchanged {
        evaluation: i32,
    },
    Failed {
        error: String,
    },
    Evaluated(Written),
    Applied(Applied),
    /// What the jobs are; nothing was written.
    Dry(Vec<Job>),
    /// Of a dry run: nothing changed, or a specification would be applied.
    DryNothing(String),
}

/// Why the jobset's row does not say what happened.
#[derive(Debug, thiserror::Error)]
pub enum EvaluationError {
    #[error("specified jobset ‘{project}:{jobset}’ does not exist")]
    NoJobset { project: String, jobset: String },
    #[error(transparent)]
    Db(#[from] DbError),
}

/// Evaluates a jobset.
///
/// # Errors
/// When there is no such jobset, or the database stays away.
pub fn run(
    place: &Place<'_>,
    order: &Order,
    progress: &Progress,
) -> Result<Ending, EvaluationError> {
    let (project, jobset) = (order.project.as_str(), order.jobset.as_str());
    progress.enter(Phase::Waiting, "");
    let tell = |words: &str| {
        progress.enter(Phase::Waiting, "for another evaluation of this jobset");
        progress.beside(|| log::info!("{project}:{jobset}: {words}"));
    };
    let session = Session::open(place.target, APPLICATION_NAME, project, jobset, &tell)?;
    let Some(session) = session else {
        return Err(EvaluationError::NoJobset {
            project: project.to_owned(),
            jobset: jobset.to_owned(),
        });
    };
    let id = session.jobset();
    let mut evaluation = Evaluation {
        place,
        order,
        progress,
        session,
        id,
        trace: trace(),
        began: evaluations::now(),
    };
    let clock = Instant::now();
    let ending = match order.dry_run {
        true => evaluation.rehearse(),
        false => evaluation.perform(),
    };
    place
        .statsd
        .timing("hydra.evaluator.total_time", clock.elapsed());
    ending
}

/// Writes into a jobset's row that its evaluation was ended from outside, and announces that, but mails nobody: it is no error of the
/// jobset. For who is told to stop while another thread evaluates; the lock is that one's.
///
/// # Errors
/// Of the database.
pub fn record_stop(target: &DbTarget, order: &Order, error: &str) -> Result<(), DbError> {
    let mut client = target.connect(APPLICATION_NAME)?;
    let jobset = evaluations::jobset_in(&mut client, &order.project, &order.jobset)?;
    let Some(jobset) = jobset else { return Ok(()) };
    let mut tx = client.transaction()?;
    evaluations::finish_stopped(&mut tx, jobset.id, error, evaluations::now())?;
    let failed = format!("{}\t{}", trace(), jobset.id);
    evaluations::notify(&mut tx, &[("eval_failed", failed)])?;
    Ok(tx.commit()?)
}

fn finish_failed(
    tx: &mut postgres::Transaction<'_>,
    jobset: i32,
    error: &str,
    trace: &str,
) -> Result<(), DbError> {
    evaluations::finish_failed(tx, jobset, error, evaluations::now(), trace)?;
    evaluations::notify(tx, &[("eval_failed", format!("{trace}\t{jobset}"))])
}

/// Tells one evaluation from another in notifications: the monotonic clock's seconds and our pid.
fn trace() -> String {
    let mut now = libc::timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    // SAFETY: the call writes into the structure given to it.
    unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC, &mut now) };
    format!("{}.{:09}.{}", now.tv_sec, now.tv_nsec, std::process::id())
}

struct Evaluation<'a> {
    place: &'a Place<'a>,
    order: &'a Order,
    progress: &'a Progress,
    session: Session,
    /// Of the jobset.
    id: i32,
    trace: String,
    began: i32,
}

/// What came of the way to the jobs.
enum Outcome {
    Unchanged(Latest),
    Evaluated(Box<Found>),
    Applied(Applied),
}

/// Why there is none.
enum Failure {
    /// An input cannot be fetched.
    Fetch(String),
    /// The evaluation failed as a whole.
    Whole(String),
    Db(DbError),
}

impl From<DbError> for Failure {
    fn from(error: DbError) -> Failure {
        Failure::Db(error)
    }
}

impl Evaluation<'_> {
    fn perform(&mut self) -> Result<Ending, EvaluationError> {
        // What was committed before somebody was killed.
        self.mark();
        self.session
            .announce(&[("eval_started", format!("{}\t{}", self.trace, self.id))])?;
        match self.find_out() {
            Ok(Outcome::Unchanged(latest)) => self.end_unchanged(&latest),
            Ok(Outcome::Applied(applied)) => self.end_applied(applied),
            Ok(Outcome::Evaluated(found)) => self.end_evaluated(&found),
            Err(Failure::Fetch(error)) => self.end_unfetched(error),
            Err(Failure::Whole(error)) => self.end_failed(error),
            Err(Failure::Db(error)) => self.end_db(error),
        }
    }

    /// Everything but what is written and announced.
    fn rehearse(&mut self) -> Result<Ending, EvaluationError> {
        Ok(match self.find_out() {
            Ok(Outcome::Unchanged(latest)) => {
                Ending::DryNothing(format!("nothing changed since evaluation {}", latest.id))
            }
            Ok(Outcome::Applied(applied)) => {
                let count = applied.created.len() + applied.changed.len() + applied.disabled.len();
                let errors = applied.error_text();
                Ending::DryNothing(format!("{count} jobsets would change\n{errors}"))
            }
            Ok(Outcome::Evaluated(found)) => Ending::Dry(found.jobs),
            Err(Failure::Fetch(error)) => Ending::Unfetched { error },
            Err(Failure::Whole(error)) => Ending::Failed { error },
            Err(Failure::Db(error)) => return Err(error.into()),
        })
    }

    /// From the jobset's configuration to its jobs.
    fn find_out(&mut self) -> Result<Outcome, Failure> {
        let (project, name) = (&self.order.project, &self.order.jobset);
        let statsd = self.place.statsd;
        let clock = Instant::now();
        let mut jobset = self.read()?;
        let mut specs = self.specs()?;
        let mut inputs = Inputs::new();
        let declaration = jobset.declaration.clone().filter(|_| name == JOBSETS);
        if let Some(declaration) = &declaration {
            let (specification, input) = self.specification(declaration)?;
            let spec = match specification {
                Specification::Jobsets(jobsets) => return self.apply(&jobsets),
                Specification::Generator(spec) => spec,
            };
            let wanted = self.apply_generator(&spec)?;
            jobset.nix_expr_input = wanted.nix_expr_input;
            jobset.nix_expr_path = wanted.nix_expr_path;
            jobset.flake = wanted.flake;
            specs = wanted.inputs.into_iter().map(input_spec).collect();
            let renamed = |input: FetchedInput, name: &str| {
                let name = name.to_owned();
                (name.clone(), FetchedInput { name, ..input })
            };
            let project = FetchedInput {
                kind: "string".to_owned(),
                value: Some(project.clone()),
                ..FetchedInput::default()
            };
            inputs.extend([renamed(input, "declInput"), renamed(project, "projectName")]);
        }
        let fetched = self.fetch_all(&specs, &mut inputs);
        // A flake is locked although an input is missing: what is wrong with it is the worse error.
        let flake = match &jobset.flake {
            Some(flake) => {
                let shown = inputs::shown_flake(flake);
                self.say(format!("Fetching flake {shown}"));
                self.progress.enter(Phase::Fetching, &shown);
                Some(flake::lock(flake).map_err(Failure::Whole)?)
            }
            None => None,
        };
        let checkout = clock.elapsed();
        statsd.increment("hydra.evaluator.checkouts");
        statsd.timing("hydra.evaluator.checkout_time", checkout);
        fetched.inspect_err(|_| statsd.increment("hydra.evaluator.failed_checkouts"))?;

        let text = |text: &Option<String>| text.clone().unwrap_or_default();
        let (expr_input, expr_path) = (text(&jobset.nix_expr_input), text(&jobset.nix_expr_path));
        let hash = arguments::hash(&expr_input, &expr_path, &inputs);
        let id = self.id;
        let latest = self.session.transact(|tx| evaluations::latest(tx, id))?;
        let forced = jobset.force || self.order.force || self.order.dry_run;
        if let Some(latest) = latest.as_ref().filter(|_| !forced) {
            if latest.hash == hash && (flake.is_none() || latest.flake == flake) {
                statsd.increment("hydra.evaluator.unchanged_checkouts");
                return Ok(Outcome::Unchanged(latest.clone()));
            }
        }

        let source = match &flake {
            Some(locked) => Source::Flake {
                locked: locked.clone(),
            },
            None => arguments::source(&expr_input, &expr_path, &inputs),
        };
        let clock = Instant::now();
        // What Nix says of a flake may name it.
        let hide = |text: String| match &flake {
            Some(flake) => inputs::without_secrets_of_flake(flake, &text),
            None => text,
        };
        let evaluated = self.evaluate(source).map_err(|failure| match failure {
            Failure::Whole(error) => Failure::Whole(hide(error)),
            other => other,
        });
        let (mut jobs, evaluator) = evaluated?;
        for job in &mut jobs {
            job.error = job.error.take().map(hide);
        }
        if !self.place.features.nullable_output_paths {
            jobs.iter_mut().for_each(builds::refuse_unknown_paths);
        }
        jobs.iter_mut().for_each(builds::refuse_long_name);
        let eval = clock.elapsed();
        statsd.timing("hydra.evaluator.eval_time", eval);
        judge(&jobs, declaration.is_some())?;
        let row = EvaluationRow {
            hash,
            timestamp: evaluations::now(),
            checkout_time: secs(checkout),
            eval_time: secs(eval),
            builds: None,
            flake,
            nix_expr_input: jobset.nix_expr_input.clone(),
            nix_expr_path: jobset.nix_expr_path.clone(),
            error: builds::errors(&jobs),
            evaluator,
        };
        Ok(Outcome::Evaluated(Box::new(Found {
            jobset,
            row,
            inputs,
            jobs,
            after: latest.map_or(0, |latest| latest.id),
            began: self.began,
        })))
    }

    fn read(&mut self) -> Result<Jobset, Failure> {
        let (project, name) = (&self.order.project, &self.order.jobset);
        let jobset = self
            .session
            .transact(|tx| evaluations::jobset_in(tx, project, name))?;
        jobset.ok_or_else(|| Failure::Whole("the jobset was deleted meanwhile".to_owned()))
    }

    /// The project's specification, and the input that has it.
    fn specification(
        &self,
        declaration: &evaluations::Declaration,
    ) -> Result<(Specification, FetchedInput), Failure> {
        let spec = InputSpec {
            name: "decl".to_owned(),
            kind: declaration.kind.clone(),
            value: declaration.value.clone(),
            email_responsible: false,
        };
        let input = self
            .fetch(&spec)?
            .filter(|input| input.store_path.is_some());
        let Some(input) = input else {
            return Err(Failure::Fetch(format!(
                "the input ‘{} {}’ of the project's specification has no files",
                spec.kind, spec.value
            )));
        };
        let path = input.store_path.as_deref().unwrap_or_default();
        let text = declaration::read(self.place.store.dir(), path, &declaration.file)
            .map_err(Failure::Whole)?;
        let specification = declarative::parse(&text)
            .map_err(|error| Failure::Whole(format!("‘{}’: {error}", declaration.file)))?;
        Ok((specification, input))
    }

    /// Carries out a specification that names all jobsets.
    fn apply(
        &mut self,
        jobsets: &BTreeMap<String, Result<JobsetSpec, String>>,
    ) -> Result<Outcome, Failure> {
        let dynamic = self.place.settings.dynamic_run_command;
        let mode = self.mode();
        let client = self.session.connected()?;
        let applied = declared::apply(client, &self.order.project, jobsets, dynamic, mode)?;
        applied
            .map(Outcome::Applied)
            .ok_or_else(|| Failure::Whole("the project was deleted meanwhile".to_owned()))
    }

    /// Makes this jobset what the specification says of the one that makes the others. Gives what it is then.
    fn apply_generator(&mut self, spec: &JobsetSpec) -> Result<JobsetSpec, Failure> {
        let (project, dynamic) = (&self.order.project, self.place.settings.dynamic_run_command);
        let mode = self.mode();
        let client = self.session.connected()?;
        let changed = declared::apply_one(client, project, JOBSETS, spec, dynamic, mode)?;
        changed.map_err(Failure::Whole)?;
        let mut jobsets = declared::read(client, project)?;
        let now = jobsets.remove(JOBSETS).unwrap_or_default();
        // Of a rehearsal no row tells.
        spec.over(&now).map_err(Failure::Whole)
    }

    fn mode(&self) -> Mode {
        match self.order.dry_run {
            true => Mode::Rehearse,
            false => Mode::Apply,
        }
    }

    /// The inputs as configured, each with one value.
    fn specs(&mut self) -> Result<Vec<InputSpec>, Failure> {
        let (project, name) = (&self.order.project, &self.order.jobset);
        let rows = self
            .session
            .transact(|tx| evaluations::inputs(tx, project, name))?;
        let specs = rows.into_iter().map(|row| InputSpec {
            name: row.name,
            kind: row.kind,
            value: row.value,
            email_responsible: row.email_responsible,
        });
        Ok(specs.collect())
    }

    /// Fetches the inputs of the jobset; the first that cannot be fetched ends it.
    fn fetch_all(&self, specs: &[InputSpec], inputs: &mut Inputs) -> Result<(), Failure> {
        for spec in specs {
            let Some(input) = self.fetch(spec)? else {
                continue;
            };
            if inputs.insert(spec.name.clone(), input).is_some() {
                return Err(Failure::Whole(format!(
                    "input ‘{}’: multiple jobset input alternatives are no longer supported",
                    spec.name
                )));
            }
        }
        Ok(())
    }

    /// One input; `None` if it is not there yet.
    fn fetch(&self, spec: &InputSpec) -> Result<Option<FetchedInput>, Failure> {
        self.progress.enter(Phase::Fetching, &spec.name);
        let Order {
            project, jobset, ..
        } = self.order;
        let fetcher = self.place.fetcher.as_ref();
        let fetcher = fetcher.map_err(|error| Failure::Fetch(error.clone()))?;
        let fetched = fetcher.fetch(project, jobset, spec);
        fetched.map_err(|error| Failure::Fetch(error.to_string()))
    }

    /// All jobs of the jobset, good and bad.
    fn evaluate(&self, source: Source) -> Result<(Vec<Job>, Evaluator), Failure> {
        self.progress.enter(Phase::Evaluating, "");
        let request = Request {
            source,
            settings: self.place.settings.evaluator.clone(),
            gc_roots_dir: Some(self.place.settings.gc_roots_dir.clone()),
            options: Vec::new(),
            dry_run: self.order.dry_run,
            store: self.place.store,
        };
        if std::env::var_os("HYDRA_DEBUG").is_some() {
            let line = arguments::command_line(&request.source, &self.place.settings.gc_roots_dir);
            let line = match &request.source {
                Source::Flake { locked } => inputs::without_secrets_of_flake(locked, &line),
                Source::Legacy { .. } => line,
            };
            self.progress
                .beside(|| eprintln!("evaluating jobs as: {line}"));
        }
        let mut found = Vec::new();
        let summary = jobs::evaluate(&request, &mut |job| found.push(job), &|at| {
            self.progress.at(|| (numbers(at), words(at)));
        });
        match summary {
            Ok(summary) => {
                // Of one that was over before it was looked at nothing is known.
                let peak = match summary.peak_bytes {
                    0 => String::new(),
                    bytes => format!("; peak memory {}", text::bytes_text(bytes)),
                };
                self.say(format!(
                    "{} jobs evaluated, {} of them with errors{peak}",
                    summary.jobs, summary.failed
                ));
                let program = match request.settings.program {
                    EvaluatorProgram::Builtin => "builtin",
                    EvaluatorProgram::NixEvalJobs => "nix-eval-jobs",
                };
                let evaluator = Evaluator {
                    program,
                    processes: i32::try_from(summary.processes).unwrap_or(i32::MAX),
                    peak_bytes: i64::try_from(summary.peak_bytes).unwrap_or(i64::MAX),
                };
                Ok((found, evaluator))
            }
            Err(EvalError::Top(error)) => Err(Failure::Whole(builds::in_job("", &error))),
            Err(error) => Err(Failure::Whole(error.to_string())),
        }
    }

    fn end_unfetched(&mut self, error: String) -> Result<Ending, EvaluationError> {
        let error = fit(&error);
        let (id, trace) = (self.id, &self.trace);
        self.session.transact(|tx| {
            evaluations::finish_unfetched(tx, id, &error, evaluations::now())?;
            evaluations::notify(tx, &[("eval_failed", format!("{trace}\t{id}"))])
        })?;
        Ok(Ending::Unfetched { error })
    }

    fn end_unchanged(&mut self, latest: &Latest) -> Result<Ending, EvaluationError> {
        let (id, trace) = (self.id, &self.trace);
        self.session.transact(|tx| {
            evaluations::finish_unchanged(tx, id, latest, evaluations::now())?;
            evaluations::notify(
                tx,
                &[("eval_cached", format!("{trace}\t{id}\t{}", latest.id))],
            )
        })?;
        Ok(Ending::Unchanged {
            evaluation: latest.id,
        })
    }

    fn end_failed(&mut self, error: String) -> Result<Ending, EvaluationError> {
        let error = fit(&error);
        let (id, trace) = (self.id, &self.trace);
        self.session
            .transact(|tx| finish_failed(tx, id, &error, trace))?;
        Ok(Ending::Failed { error })
    }

    /// What the database did not take is written into the row, if that can be.
    fn end_db(&mut self, error: DbError) -> Result<Ending, EvaluationError> {
        if error.is_lost() || matches!(error, DbError::Busy(_)) {
            return Err(error.into());
        }
        self.end_failed(format!("the evaluation cannot be written: {error}"))
    }

    /// The jobsets are made; what is wrong with single ones stands where an error of the evaluation would, and is gone when it is
    /// mended.
    fn end_applied(&mut self, applied: Applied) -> Result<Ending, EvaluationError> {
        let error = fit(&applied.error_text());
        let (id, trace) = (self.id, &self.trace);
        self.session.transact(|tx| match error.as_str() {
            "" => evaluations::finish_failed(tx, id, "", evaluations::now(), trace),
            error => finish_failed(tx, id, error, trace),
        })?;
        Ok(Ending::Applied(applied))
    }

    fn end_evaluated(&mut self, found: &Found) -> Result<Ending, EvaluationError> {
        let place = self.place;
        self.progress.enter(Phase::Writing, "");
        let clock = Instant::now();
        let written = writing::write(
            &mut self.session,
            found,
            &self.trace,
            place.features,
            self.progress,
        );
        let written = match written {
            Ok(written) => written,
            Err(error) => return self.end_db(error),
        };
        place
            .statsd
            .timing("hydra.evaluator.db_time", clock.elapsed());
        place.statsd.increment("hydra.evaluator.evals");
        if !written.changed {
            place.statsd.increment("hydra.evaluator.cached_evals");
        }
        self.progress.enter(Phase::Marking, "");
        self.mark();
        Ok(Ending::Evaluated(written))
    }

    /// Makes the builds of the newest evaluation the current ones. What does not succeed the next evaluation does.
    fn mark(&mut self) {
        if let Err(error) = self.session.make_current() {
            let (project, jobset) = (&self.order.project, &self.order.jobset);
            log::warn!("{project}:{jobset}: its builds are not all marked as current yet, the next evaluation does that: {error}");
        }
    }

    /// A line as Hydra's program prints it.
    fn say(&self, words: String) {
        let Order {
            project, jobset, ..
        } = self.order;
        self.progress
            .beside(|| log::info!("({project}:{jobset}) {words}"));
    }
}

/// Whether the jobs can be those of a jobset; `declarative`: of one that makes the others.
fn judge(jobs: &[Job], declarative: bool) -> Result<(), Failure> {
    if let Some(top) = jobs.iter().find(|job| job.name.is_empty()) {
        let none = "Jobset contains a job with an empty name. Make sure the jobset evaluates to an attrset of jobs.";
        return Err(Failure::Whole(match &top.error {
            Some(error) => builds::in_job("", error),
            None => none.to_owned(),
        }));
    }
    if declarative && !matches!(jobs, [job] if job.name == "jobsets") {
        return Err(Failure::Whole(format!(
            "The {JOBSETS} jobset must only have a single job named 'jobsets'\n{}",
            builds::errors(jobs)
        )));
    }
    Ok(())
}

fn input_spec((name, input): (String, SpecInput)) -> InputSpec {
    InputSpec {
        name,
        kind: input.kind,
        value: input.value.unwrap_or_default(),
        email_responsible: input.email_responsible,
    }
}

/// An error as a row takes it.
fn fit(error: &str) -> String {
    text::clip(&text::plain(error), ERROR_BYTES_MAX)
}

fn numbers(at: &jobs::Progress) -> Map<String, Value> {
    match at.to_json() {
        Value::Object(numbers) => numbers,
        _ => Map::new(),
    }
}

fn words(at: &jobs::Progress) -> String {
    let failed = match at.failed {
        0 => String::new(),
        n => format!(", {n} with errors"),
    };
    let memory = text::bytes_text(at.memory_bytes);
    format!("{} of {} jobs{failed}, {memory}", at.evaluated, at.found)
}

fn secs(time: Duration) -> i32 {
    i32::try_from(time.as_secs()).unwrap_or(i32::MAX)
}
