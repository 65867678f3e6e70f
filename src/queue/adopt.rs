//! What an ended process left busy is settled before anything starts: a step whose outputs are all valid is
//! adopted as a success, and its builds finish as built. One that was under way on another machine is asked about
//! there (`salvage`); any other is aborted and will be built again.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::{inspect, Context};
use crate::db::leftovers::{self, BusyStep};
use crate::db::writer::{Adoption, Body};
use crate::model::UnixSecs;
use crate::plan::action::Succeed;
use crate::sys::clock::unix_now;
use crate::sys::systemd;

/// How long a connection to the database may take to come.
const CONNECTION_PATIENCE: Duration = Duration::from_secs(30);
/// Rows whose outputs are asked about in one question, and that are ended by one statement.
const ROWS_PER_QUESTION: usize = 256;
/// How often systemd is told that the start goes on, and how long it then waits.
const SIGN_OF_LIFE: Duration = Duration::from_secs(5);
const EXTENSION: Duration = Duration::from_secs(120);

/// Settles all busy rows, except those that other machines are asked about. Returns what the writer still has to write.
///
/// # Errors
/// A message; nothing is started then.
pub fn settle(context: &Context) -> Result<Vec<Body>, String> {
    let text = |error: crate::db::DbError| error.to_string();
    let mut conn = context.pool.get(CONNECTION_PATIENCE).map_err(text)?;
    let unlocked = leftovers::restore(&mut conn).map_err(text)?;
    if unlocked > 0 {
        log::info!("{unlocked} steps that --unlock ended are looked at again");
    }
    let steps = leftovers::busy_steps(&mut conn).map_err(text)?;
    drop(conn);
    let mut adoptions = Vec::new();
    let mut start = LongStart::new(steps.len());
    for rows in steps.chunks(ROWS_PER_QUESTION) {
        let mut aborted = Vec::new();
        let there = outputs_there(context, rows);
        for step in rows {
            start.row_done();
            let found = if is_all_there(step, &there) {
                adoption(context, step)?
            } else {
                None
            };
            if let Some(adoption) = found {
                adoptions.push(Body::Adopt(adoption));
            } else if step.is_elsewhere() {
                context.leftovers.add(step.clone());
            } else {
                say_aborted(step);
                aborted.push(step);
            }
        }
        if !aborted.is_empty() {
            let mut conn = context.pool.get(CONNECTION_PATIENCE).map_err(text)?;
            leftovers::abort(&mut conn, &aborted).map_err(text)?;
        }
    }
    Ok(adoptions)
}

/// Which outputs of these rows are in the destination store. When it cannot be asked: none, so that they are built again,
/// or found valid then.
fn outputs_there(context: &Context, rows: &[BusyStep]) -> HashSet<String> {
    let outputs = rows.iter().flat_map(|step| &step.outputs);
    let paths: Vec<&str> = outputs.filter_map(|path| path.as_deref()).collect();
    context.dest.valid_paths(&paths).unwrap_or_else(|message| {
        log::warn!("cannot ask which outputs are there: {message}");
        HashSet::new()
    })
}

fn is_all_there(step: &BusyStep, there: &HashSet<String>) -> bool {
    let is_there = |path: &Option<String>| path.as_ref().is_some_and(|path| there.contains(path));
    step.outputs.iter().all(is_there)
}

/// A start that takes long is said in the log and to systemd, which would otherwise end it.
struct LongStart {
    rows: usize,
    done: usize,
    said: Instant,
}

impl LongStart {
    fn new(rows: usize) -> LongStart {
        LongStart {
            rows,
            done: 0,
            said: Instant::now(),
        }
    }

    fn row_done(&mut self) {
        self.done += 1;
        if self.said.elapsed() < SIGN_OF_LIFE {
            return;
        }
        self.said = Instant::now();
        log::info!(
            "settling what was left busy: {} of {} steps",
            self.done,
            self.rows
        );
        systemd::notify(&format!("EXTEND_TIMEOUT_USEC={}", EXTENSION.as_micros()));
    }
}

/// One line about a busy row that ends without a success.
pub fn say_aborted(step: &BusyStep) {
    log::info!(
        "aborting step {} of build {}: '{}' was not finished",
        step.stepnr,
        step.build,
        step.drv
    );
}

/// The success of a busy row, if its outputs are all valid here.
///
/// # Errors
/// Of the database.
pub fn adoption(context: &Context, step: &BusyStep) -> Result<Option<Adoption>, String> {
    let Some(stop) = adoptable(context, step) else {
        return Ok(None);
    };
    let builds = context
        .pool
        .get(CONNECTION_PATIENCE)
        .and_then(|mut conn| leftovers::builds_of(&mut conn, &step.drv))
        .map_err(|error| error.to_string())?;
    match success(context, step, &builds, stop) {
        Ok(adoption) => {
            log::info!(
                "adopting step {} of build {}: '{}' was built",
                step.stepnr,
                step.build,
                step.drv
            );
            Ok(Some(adoption))
        }
        Err(message) => {
            log::warn!("cannot adopt '{}': {message}; it is built again", step.drv);
            Ok(None)
        }
    }
}

/// When all outputs of a step are in the destination store: the time the last of them came there.
fn adoptable(context: &Context, step: &BusyStep) -> Option<UnixSecs> {
    let paths: Vec<&str> = step
        .outputs
        .iter()
        .map(|path| path.as_deref())
        .collect::<Option<_>>()?;
    let mut stop = None;
    for path in paths {
        match context.dest.arrival(path) {
            Ok(Some(time)) => stop = stop.max(Some(time)),
            Ok(None) => return None,
            Err(message) => {
                log::warn!("cannot ask for {path}: {message}");
                return None;
            }
        }
    }
    // A clock that went back, or an output that was there before: never an end before the beginning.
    stop.map(|stop| stop.clamp(step.start, unix_now().max(step.start)))
}

fn success(
    context: &Context,
    step: &BusyStep,
    builds: &[crate::model::BuildId],
    stop: UnixSecs,
) -> Result<Adoption, String> {
    let bytes = context
        .store
        .read_drv(&step.drv)
        .map_err(|error| error.to_string())?;
    let derivation =
        crate::nix::derivation::Derivation::parse(&bytes).map_err(|error| error.to_string())?;
    let outputs: Vec<(String, String)> = derivation.known_outputs();
    let output = Arc::new(inspect::from_store(context, &outputs)?);
    for (_, path) in &outputs {
        context
            .roots
            .add(path)
            .map_err(|error| format!("cannot register a GC root for {path}: {error}"))?;
    }
    let log = context.logs.path(&step.drv);
    if let Some(uploads) = context.log_uploads.as_ref().filter(|_| log.exists()) {
        uploads.add(&step.drv);
    }
    Ok(Adoption {
        build: step.build,
        stepnr: step.stepnr,
        stop,
        log: log.exists().then(|| log.display().to_string()),
        succeed: Succeed {
            builds: builds.iter().map(|id| (*id, *id != step.build)).collect(),
            output,
            start: step.start,
            stop,
        },
    })
}
