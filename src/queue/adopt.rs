//! What an ended process left busy is settled before anything starts: a step whose outputs are all valid is
//! adopted as a success, and its builds finish as built. One that was under way on another machine is asked about
//! there (`salvage`); any other is aborted and will be built again.

use std::sync::Arc;
use std::time::Duration;

use super::{inspect, Context};
use crate::db::leftovers::{self, BusyStep};
use crate::db::writer::{Adoption, Body};
use crate::model::UnixSecs;
use crate::plan::action::Succeed;
use crate::sys::clock::unix_now;

/// How long a connection to the database may take to come.
const CONNECTION_PATIENCE: Duration = Duration::from_secs(30);

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
    for step in steps {
        if let Some(adoption) = adoption(context, &step)? {
            adoptions.push(Body::Adopt(adoption));
        } else if step.is_elsewhere() {
            context.leftovers.add(step);
        } else {
            say_aborted(&step);
            let mut conn = context.pool.get(CONNECTION_PATIENCE).map_err(text)?;
            leftovers::abort(&mut conn, &step).map_err(text)?;
        }
    }
    Ok(adoptions)
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
