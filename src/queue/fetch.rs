//! Fetching: outputs that need not be built, since a substituter or the local store has them.
//!
//! What is missing in the destination store, and would have to be built, comes here first if `use-substitutes` is on or
//! the destination is another store than the local one. As in Hydra, either all that is missing of a derivation is
//! brought there, or the step is built. Asking substituters and waiting for them may take long: threads of their own do
//! it, so that inspection goes on. Whatever goes wrong is said in the log, and the step is built.

use std::collections::HashSet;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::Arc;
use std::time::{Duration, Instant};

use crossbeam_channel::{bounded, select, Receiver, Sender};

use super::Context;
use crate::model::Substituted;
use crate::plan::event::{Event, QuestionId, StepFacts, StepSpec};
use crate::store::destination::Trouble;
use crate::store::local::Fetching;
use crate::sys::clock::unix_now;
use crate::sys::heartbeat::{self, Patience};
use crate::sys::kill::KillSwitch;

/// Steps that wait for one of them. Others are asked about again a little later, so that questions stay free.
const WAITING_MAX: usize = 256;
/// Substituters that did not answer are not asked for this long: each question would take as long as the last one did.
const PAUSE_SECS: u64 = 60;

/// A step of which something is missing.
pub struct Job {
    pub question: QuestionId,
    pub drv: Arc<str>,
    /// What is to be answered if it has to be built.
    pub spec: StepSpec,
    /// The outputs that are missing in the destination store.
    pub missing: Vec<String>,
}

/// The way to the fetchers, and what they share.
pub struct Fetchers {
    jobs: Sender<Job>,
    queue: Receiver<Job>,
    use_substitutes: bool,
    kill: Arc<KillSwitch>,
    idle_max: Duration,
    began: Instant,
    /// Seconds after `began` until which substituters are not asked.
    paused_until: AtomicU64,
}

impl Fetchers {
    /// # Errors
    /// When the system refuses a pipe.
    pub fn new(use_substitutes: bool, idle_max: Duration) -> std::io::Result<Fetchers> {
        let (jobs, queue) = bounded(WAITING_MAX);
        Ok(Fetchers {
            jobs,
            queue,
            use_substitutes,
            kill: Arc::new(KillSwitch::new()?),
            idle_max,
            began: Instant::now(),
            paused_until: AtomicU64::new(0),
        })
    }

    /// Takes a job, or says what is to be answered instead. `here` are the paths that are valid in the local store.
    pub fn offer(&self, job: Job, here: &HashSet<String>) -> Option<(QuestionId, StepFacts)> {
        let may_ask = self.use_substitutes && !self.is_paused();
        if !may_ask && !job.missing.iter().all(|path| here.contains(path)) {
            return Some((job.question, StepFacts::Needed(job.spec)));
        }
        let question = job.question;
        // Whoever offers never waits.
        match self.jobs.try_send(job) {
            Ok(()) => None,
            Err(_) => Some((question, StepFacts::Later)),
        }
    }

    /// Ends what is under way.
    pub fn end(&self) {
        self.kill.throw();
    }

    fn is_paused(&self) -> bool {
        self.began.elapsed().as_secs() < self.paused_until.load(Ordering::Relaxed)
    }

    fn pause(&self) {
        let until = self.began.elapsed().as_secs() + PAUSE_SECS;
        self.paused_until.store(until, Ordering::Relaxed);
    }
}

/// The body of a fetcher, until `ended` is closed.
pub fn serve(context: &Context, fetchers: &Fetchers, ended: &Receiver<()>) {
    let mut fetching = Fetching::new(fetchers.kill.clone(), fetchers.idle_max);
    loop {
        heartbeat::idle("waiting for outputs to fetch");
        let job = select! {
            recv(fetchers.queue) -> job => job,
            recv(ended) -> _ => return,
        };
        let Ok(job) = job else { return };
        let patience = Patience::Deadline(fetchers.idle_max);
        let fetched = heartbeat::during("fetching outputs", patience, || {
            heartbeat::about(Some(job.drv.clone()));
            fetch(context, fetchers, &mut fetching, &job)
        });
        if fetchers.kill.is_thrown() {
            return;
        }
        let facts = match fetched {
            Ok(outputs) if !outputs.is_empty() => {
                let paths: Vec<&str> = outputs.iter().map(|output| &*output.path).collect();
                log::info!(
                    "outputs of '{}' need not be built: fetched {}",
                    job.drv,
                    paths.join(", ")
                );
                StepFacts::Substituted { outputs }
            }
            Ok(_) => StepFacts::Needed(job.spec),
            Err(message) => {
                log::warn!(
                    "cannot fetch the outputs of '{}', so it is built: {message}",
                    job.drv
                );
                StepFacts::Needed(job.spec)
            }
        };
        context.tell_plan(Event::Facts {
            answers: vec![(job.question, facts)],
        });
    }
}

/// Brings all that is missing into the destination store; empty if it cannot be had.
fn fetch(
    context: &Context,
    fetchers: &Fetchers,
    fetching: &mut Fetching,
    job: &Job,
) -> Result<Vec<Substituted>, String> {
    let store = &context.store;
    let here = store.valid_paths(&job.missing)?;
    let elsewhere: Vec<&str> = job
        .missing
        .iter()
        .map(String::as_str)
        .filter(|path| !here.contains(*path))
        .collect();
    if !elsewhere.is_empty() {
        if !fetchers.use_substitutes || fetchers.is_paused() {
            return Ok(Vec::new());
        }
        let found = store
            .substitutable(fetching, &elsewhere)
            .inspect_err(|_| fetchers.pause())
            .map_err(|error| {
                format!("{error}; substituters are not asked for {PAUSE_SECS} seconds")
            })?;
        if !elsewhere.iter().all(|path| found.contains(*path)) {
            return Ok(Vec::new());
        }
    }
    // Of several outputs some may have been there all the time.
    let is_there = |path: &String| context.dest.is_local() && here.contains(path);
    let mut outputs = Vec::with_capacity(job.missing.len());
    for path in job.missing.iter().filter(|path| !is_there(path)) {
        let start = unix_now();
        if !here.contains(path) {
            store.substitute(fetching, path).map_err(|error| {
                format!(
                    "a substituter offers it, but Nix does not get it from there (is it signed by one of the \
                     trusted-public-keys in nix.conf?): {error}"
                )
            })?;
        }
        // What waits for it may take a while to start.
        context
            .roots
            .add(path)
            .map_err(|error| format!("cannot register a GC root for {path}: {error}"))?;
        context
            .dest
            .copy_from_local(&[path], &fetchers.kill)
            .map_err(|trouble: Trouble| trouble.to_string())?;
        outputs.push(Substituted {
            path: path.clone(),
            start,
            stop: unix_now(),
        });
    }
    // Dependents start on nothing less than this.
    let there = context.dest.valid_paths(&job.missing)?;
    match job.missing.iter().find(|path| !there.contains(*path)) {
        None => Ok(outputs),
        Some(path) => Err(format!(
            "{path} is not in {} afterwards",
            context.dest.describe()
        )),
    }
}
