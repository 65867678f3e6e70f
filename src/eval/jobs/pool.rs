//! The workers of an evaluation, and what becomes of what they hear.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::Mutex;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, RecvTimeoutError, Sender};

use super::aggregates::{Aggregates, Held};
use super::process::{End, Outcome, Process, Surroundings};
use super::protocol::{self, Found, Named, Range, Set, Told};
use super::ranges::{cut, Ranges};
use super::{skip, words, EvalError, Progress, Request, Summary};
use crate::base::lock::lock;
use crate::eval::job::{Job, Source};
use crate::nix::store_path::{check_drv_path, check_store_path};
use crate::store::roots::GcRoots;
use crate::sys::child::plain_error;

/// Jobs that are told of and not yet taken; whoever has more waits.
const JOBS_AHEAD: usize = 1_024;
/// How often progress is told.
const PROGRESS_EVERY: Duration = Duration::from_millis(250);
/// How long a line should take: what is said in one line cannot be given to a worker that idles.
const LINE_TIME: Duration = Duration::from_millis(250);
/// How often a process is started that does not start.
const STARTS_MAX: u32 = 3;
/// The pause before the second time; before the third it is twice as long.
const START_PAUSE: Duration = Duration::from_millis(500);

/// Jobs of one jobset; nixpkgs has 300,000. What has more contains itself, most likely.
const JOBS_MAX: u64 = 2_000_000;
/// Illegal names that are told of.
const SKIPPED_SHOWN_MAX: u64 = 1_000;

struct Pool<'a> {
    request: &'a Request<'a>,
    around: &'a Surroundings,
    roots: Option<GcRoots>,
    ranges: Ranges,
    found: AtomicU64,
    evaluated: AtomicU64,
    failed: AtomicU64,
    processes: AtomicU64,
    peak_process: AtomicU64,
    /// Of each worker's process, bytes; 0 without one.
    memory: Vec<AtomicU64>,
    alive: AtomicU32,
    skipped: AtomicU64,
    failure: Mutex<Option<EvalError>>,
}

/// Ends the workers however the evaluation ends, also by a panic of whoever takes the jobs.
struct Closing<'a>(&'a Pool<'a>);

impl Drop for Closing<'_> {
    fn drop(&mut self) {
        self.0.close();
    }
}

pub(super) fn evaluate(
    request: &Request<'_>,
    take: &mut dyn FnMut(Job),
    progress: &dyn Fn(&Progress),
) -> Result<Summary, EvalError> {
    if let Some(summary) = evaluate_in(request, request.is_restricted(), take, progress)? {
        return Ok(summary);
    }
    let summary = evaluate_in(request, true, take, progress)?;
    Ok(summary.expect("BUG: what is restricted need not be pure"))
}

/// `None`, and nothing was evaluated: neither restriction nor purity would have bounded what the flake can reach.
fn evaluate_in(
    request: &Request<'_>,
    restricted: bool,
    take: &mut dyn FnMut(Job),
    progress: &dyn Fn(&Progress),
) -> Result<Option<Summary>, EvalError> {
    let around = Surroundings::new(request, restricted)?;
    let roots = match &request.gc_roots_dir {
        Some(dir) if !request.dry_run => {
            Some(GcRoots::open(dir).map_err(|error| EvalError::Folder {
                path: dir.clone(),
                why: plain_error(&error),
            })?)
        }
        _ => None,
    };
    let workers = request.settings.workers.max(1);
    let pool = Pool {
        request,
        around: &around,
        roots,
        ranges: Ranges::new(workers),
        found: AtomicU64::new(0),
        evaluated: AtomicU64::new(0),
        failed: AtomicU64::new(0),
        processes: AtomicU64::new(0),
        peak_process: AtomicU64::new(0),
        memory: (0..workers).map(|_| AtomicU64::new(0)).collect(),
        alive: AtomicU32::new(0),
        skipped: AtomicU64::new(0),
        failure: Mutex::new(None),
    };
    let mut aggregates = Aggregates::default();
    let mut peak_bytes = 0;
    let (said, heard) = crossbeam_channel::bounded(JOBS_AHEAD);
    progress(&pool.progress());
    let bounded = std::thread::scope(|scope| {
        let closing = Closing(&pool);
        // The first process evaluates the top; the others would only do the same.
        let mut first = pool.start(&pool.memory[0])?;
        if request.is_pure() {
            let pure = pool.say(&mut first, protocol::IS_PURE)? == Told::Other("pure".to_owned());
            if !pure && !restricted {
                return Ok(false);
            }
            if !pure {
                log::info!(
                    "this version of Nix does not evaluate purely in `nix repl`, so what can be reached is restricted instead: a flake's \
                     inputs have to be among allowed-uris of nix.conf"
                );
            }
        }
        if let Some(top) = pool.top(&mut first)? {
            aggregates.take(top, take);
        }
        let mut first = Some(first);
        for memory in &pool.memory {
            let (pool, said, process) = (&pool, said.clone(), first.take());
            let thread = std::thread::Builder::new().name("evaluate".to_owned());
            let started = thread.spawn_scoped(scope, move || {
                pool.work(memory, process, &said);
            });
            started.map_err(|error| EvalError::Start {
                program: "a thread".to_owned(),
                why: plain_error(&error),
            })?;
        }
        drop(said);
        pool.listen(&heard, &mut aggregates, take, progress, &mut peak_bytes);
        drop(closing);
        Ok(true)
    })?;
    if !bounded {
        return Ok(None);
    }
    if let Some(failure) = lock(&pool.failure).take() {
        return Err(failure);
    }
    let failed = aggregates.finish(request.store, pool.roots.as_ref(), request.dry_run, take);
    pool.failed.fetch_add(failed, Ordering::Relaxed);
    let end = pool.progress();
    progress(&end);
    Ok(Some(Summary {
        jobs: end.evaluated,
        failed: end.failed,
        peak_process_bytes: pool.peak_process.load(Ordering::Relaxed),
        peak_bytes,
        processes: pool.processes.load(Ordering::Relaxed),
    }))
}

impl<'a> Pool<'a> {
    fn close(&self) {
        self.ranges.close();
        self.around.stop.store(true, Ordering::Relaxed);
    }

    fn progress(&self) -> Progress {
        Progress {
            found: self.found.load(Ordering::Relaxed),
            evaluated: self.evaluated.load(Ordering::Relaxed),
            failed: self.failed.load(Ordering::Relaxed),
            memory_bytes: self.memory.iter().map(|m| m.load(Ordering::Relaxed)).sum(),
            workers: self.alive.load(Ordering::Relaxed),
        }
    }

    /// Takes what the workers say, until the last of them has ended.
    fn listen(
        &self,
        heard: &Receiver<Held>,
        aggregates: &mut Aggregates,
        take: &mut dyn FnMut(Job),
        progress: &dyn Fn(&Progress),
        peak_bytes: &mut u64,
    ) {
        let mut told = Instant::now();
        loop {
            match heard.recv_timeout(PROGRESS_EVERY) {
                Ok(job) => aggregates.take(job, take),
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => return,
            }
            if told.elapsed() >= PROGRESS_EVERY {
                told = Instant::now();
                let now = self.progress();
                *peak_bytes = (*peak_bytes).max(now.memory_bytes);
                progress(&now);
            }
        }
    }

    fn start(&self, memory: &'a AtomicU64) -> Result<Process<'a>, EvalError> {
        for tries in 1.. {
            self.processes.fetch_add(1, Ordering::Relaxed);
            match Process::start(self.around, memory) {
                Ok(process) => {
                    self.alive.fetch_add(1, Ordering::Relaxed);
                    return Ok(process);
                }
                Err(error @ (EvalError::Process(_) | EvalError::Start { .. }))
                    if tries < STARTS_MAX && !self.around.stop.load(Ordering::Relaxed) =>
                {
                    log::warn!("{error}; trying again");
                    std::thread::sleep(START_PAUSE * tries);
                }
                Err(error) => return Err(error),
            }
        }
        unreachable!("BUG: the last try is returned")
    }

    fn end(&self, process: Process<'_>) {
        self.alive.fetch_sub(1, Ordering::Relaxed);
        self.peak_process
            .fetch_max(process.peak_bytes, Ordering::Relaxed);
    }

    /// Evaluates the top: its attributes become ranges, unless it is a job by itself.
    fn top(&self, process: &mut Process<'_>) -> Result<Option<Held>, EvalError> {
        if let Source::Flake { locked } = &self.request.source {
            if self.say(process, protocol::HAS_JOBS)? == Told::Other("none".to_owned()) {
                return Err(EvalError::NoJobs {
                    flake: locked.clone(),
                });
            }
        }
        match self.say(process, protocol::ROOT)? {
            Told::Names(names) => {
                let set = Set {
                    path: Vec::new(),
                    prefix: String::new(),
                    names,
                };
                self.add(protocol::ranges(set, &mut |name| self.skip(name)));
                Ok(None)
            }
            told => {
                self.found.fetch_add(1, Ordering::Relaxed);
                Ok(self.held(&Range::top(), told))
            }
        }
    }

    /// One line with one answer.
    fn say(&self, process: &mut Process<'_>, line: &str) -> Result<Told, EvalError> {
        let mut answer = None;
        match process.evaluate(line, &mut |_, text| answer = Some(protocol::told(text))) {
            Outcome::Done => match answer {
                Some(Ok(told)) => Ok(told),
                Some(Err(why)) => Err(EvalError::Top(format!("error: {why}"))),
                None => Err(EvalError::Process("it says nothing".to_owned())),
            },
            Outcome::Failed(words) => Err(EvalError::Top(words)),
            Outcome::Ended(end) => Err(EvalError::Top(process.describe(end))),
        }
    }

    fn add(&self, ranges: Vec<Range>) {
        let count: u64 = ranges.iter().map(|range| u64::from(range.count)).sum();
        let before = self.found.fetch_add(count, Ordering::Relaxed);
        if before + count > JOBS_MAX {
            lock(&self.failure).get_or_insert(EvalError::TooMany { max: JOBS_MAX });
            return self.close();
        }
        self.ranges.add(ranges);
    }

    /// A name that cannot be a job's.
    fn skip(&self, name: &str) {
        match self.skipped.fetch_add(1, Ordering::Relaxed) {
            n if n < SKIPPED_SHOWN_MAX => skip(name),
            SKIPPED_SHOWN_MAX => log::warn!("(further illegal names are not shown)"),
            _ => {}
        }
    }

    /// A worker's life.
    fn work(&self, memory: &'a AtomicU64, mut process: Option<Process<'a>>, said: &Sender<Held>) {
        let mut pace = Pace::default();
        while let Some(batch) = self.ranges.take(pace.attributes) {
            let began = Instant::now();
            let count = batch.iter().map(|range| u64::from(range.count)).sum();
            let done = self.work_off(batch, memory, &mut process, said);
            self.ranges.done();
            pace.learn(count, began.elapsed());
            match done {
                Ok(true) => {}
                Ok(false) => break,
                Err(error) => {
                    lock(&self.failure).get_or_insert(error);
                    self.close();
                    break;
                }
            }
        }
        if let Some(process) = process {
            self.end(process);
        }
    }

    /// Evaluates a batch, whatever happens on the way; `false` if there is no sense in going on.
    fn work_off(
        &self,
        batch: Vec<Range>,
        memory: &'a AtomicU64,
        process: &mut Option<Process<'a>>,
        said: &Sender<Held>,
    ) -> Result<bool, EvalError> {
        let mut left: VecDeque<Range> = batch.into();
        // The attribute at the front was under way when a process ended.
        let mut suspect = false;
        while let Some(front) = left.front() {
            let mut it = match process.take() {
                Some(process) => process,
                None => self.start(memory)?,
            };
            let line = match suspect {
                true => protocol::go(&[cut(front.clone(), 1).0]),
                false => protocol::go(left.make_contiguous()),
            };
            let mut listening = true;
            let was_fresh = it.is_fresh();
            let mut told = 0;
            // An answer was lost: whose the others are is known, but not what came before.
            let mut muddled = false;
            let outcome = it.evaluate(&line, &mut |number, text| {
                muddled |= left.front().is_some_and(|front| front.first != number);
                if muddled {
                    return;
                }
                told += 1;
                if let Some(attribute) = next(&mut left) {
                    let held = match protocol::told(text) {
                        Ok(told) => self.held(&attribute, told),
                        Err(why) => Some(self.failed(&attribute, format!("error: {why}"))),
                    };
                    listening &= held.is_none_or(|held| said.send(held).is_ok());
                }
            });
            if !listening {
                self.end(it);
                return Ok(false);
            }
            if muddled && !suspect {
                log::warn!("an answer of an evaluating process was lost; it is replaced, and asked for the rest again");
                self.end(it);
                suspect = true;
                continue;
            }
            let error = match outcome {
                Outcome::Done => {
                    *process = Some(it);
                    match told {
                        // It cannot be told what it was about; it must not be asked for ever.
                        0 => Some(EvalError::Process("it says nothing".to_owned()).to_string()),
                        _ => None,
                    }
                }
                Outcome::Failed(words) => {
                    *process = Some(it);
                    Some(words)
                }
                Outcome::Ended(End::Stopped) => {
                    self.end(it);
                    return Ok(false);
                }
                Outcome::Ended(end) => {
                    let own = is_own(&end) || (was_fresh && told == 0);
                    let error = own.then(|| it.describe(end));
                    self.end(it);
                    suspect = error.is_none();
                    error
                }
            };
            match error {
                Some(error) => {
                    suspect = false;
                    let Some(attribute) = next(&mut left) else {
                        continue; // an error after the last one was told: nobody's
                    };
                    let held = self.failed(&attribute, error);
                    if said.send(held).is_err() {
                        return Ok(false);
                    }
                }
                None => suspect &= process.is_none(),
            }
        }
        Ok(true)
    }

    /// What is told of an attribute, as a job if it is one. A set's attributes become ranges.
    fn held(&self, attribute: &Range, told: Told) -> Option<Held> {
        match told {
            Told::Job(found) => Some(match self.keep(&found) {
                Ok(()) => {
                    self.evaluated.fetch_add(1, Ordering::Relaxed);
                    let Found { derivation, named } = *found;
                    Held {
                        job: Job {
                            name: attribute.name(),
                            derivation: Some(derivation),
                            error: None,
                        },
                        named,
                    }
                }
                Err(why) => self.failed(attribute, format!("error: {why}")),
            }),
            Told::Names(names) if !names.is_empty() && attribute.is_deepest() => {
                let name = attribute.name();
                Some(self.failed(attribute, words::too_deep(&name, protocol::DEPTH_MAX)))
            }
            Told::Names(names) => {
                self.found.fetch_sub(1, Ordering::Relaxed);
                self.add(attribute.enter(names, &mut |name| self.skip(name)));
                None
            }
            Told::Null => {
                self.found.fetch_sub(1, Ordering::Relaxed);
                None
            }
            Told::Other(kind) => {
                let name = attribute.name();
                Some(self.failed(attribute, words::not_supported(&name, &kind)))
            }
        }
    }

    fn failed(&self, attribute: &Range, error: String) -> Held {
        self.evaluated.fetch_add(1, Ordering::Relaxed);
        self.failed.fetch_add(1, Ordering::Relaxed);
        Held {
            job: Job {
                name: attribute.name(),
                derivation: None,
                error: Some(error),
            },
            named: Named::default(),
        }
    }

    /// Makes sure that the derivation is one and stays. Whoever evaluated it protects it until then; should that process have
    /// ended already, the collector may have been faster.
    fn keep(&self, found: &Found) -> Result<(), String> {
        let drv = &found.derivation.drv_path;
        let store_dir = self.request.store.dir();
        check_drv_path(store_dir, drv).map_err(|error| error.to_string())?;
        for path in found.derivation.outputs.values().flatten() {
            check_store_path(store_dir, path).map_err(|error| error.to_string())?;
        }
        if let Some(roots) = &self.roots {
            roots.add(drv).map_err(|error| {
                let dir = roots.dir().display();
                format!(
                    "cannot make a GC root for {drv} in {dir}: {}",
                    plain_error(&error)
                )
            })?;
        }
        match std::fs::symlink_metadata(drv) {
            Ok(_) => Ok(()),
            Err(error) => Err(format!("{drv} is not there: {}", plain_error(&error))),
        }
    }
}

/// Takes the first attribute off.
fn next(left: &mut VecDeque<Range>) -> Option<Range> {
    let (first, rest) = cut(left.pop_front()?, 1);
    if let Some(rest) = rest {
        left.push_front(rest);
    }
    Some(first)
}

/// Whether an end is certainly the fault of the job that was under way, so that another try would only take time.
fn is_own(end: &End) -> bool {
    match end {
        End::Time => true,
        // The stack is as large in a new process.
        End::Itself { words, .. } => words.contains("stack overflow"),
        End::Memory { .. } | End::Stopped => false,
    }
}

/// How many attributes are said in a line, so that it takes about [`LINE_TIME`].
struct Pace {
    attributes: u32,
}

impl Default for Pace {
    fn default() -> Pace {
        Pace { attributes: 2 }
    }
}

impl Pace {
    fn learn(&mut self, attributes: u64, took: Duration) {
        let per_line = match took.as_micros() {
            0 => u64::MAX,
            micros => attributes * LINE_TIME.as_micros() as u64 / micros as u64,
        };
        let per_line = u32::try_from(per_line).unwrap_or(u32::MAX);
        self.attributes = per_line.clamp(1, self.attributes.saturating_mul(4));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_grow_while_jobs_are_quick_and_shrink_at_once() {
        let mut pace = Pace::default();
        for _ in 0..10 {
            pace.learn(u64::from(pace.attributes), Duration::from_millis(1));
        }
        assert!(pace.attributes >= 100, "{}", pace.attributes);
        pace.learn(100, Duration::from_secs(100));
        assert_eq!(pace.attributes, 1);
        pace.learn(1, Duration::ZERO);
        assert_eq!(pace.attributes, 4);
    }
}
