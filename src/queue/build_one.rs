//! `--build-one`: one build and what it needs, nothing else, and the end of the service once it has ended.
//!
//! Knows when that is; the monitor leaves everything else out of the queue.

use std::sync::Arc;
use std::time::Duration;

use crossbeam_channel::{bounded, Receiver};
use postgres::Client;

use super::{Context, Error, APPLICATION_NAME};
use crate::db::listen::Listener;
use crate::db::DbError;
use crate::model::{BuildId, BuildStatus};
use crate::sys::heartbeat::{self, Patience};
use crate::sys::thread;

/// What may mean that the build has ended.
const CHANNELS: [&str; 3] = ["build_finished", "builds_cancelled", "builds_deleted"];
/// How often the build is looked at without having heard anything.
const LOOK_EVERY: Duration = Duration::from_secs(5);

/// `None`: there is no such build; `Some(None)`: it is queued.
///
/// # Errors
/// Of the database.
pub fn state(client: &mut Client, id: BuildId) -> Result<Option<Option<BuildStatus>>, DbError> {
    let row = client.query_opt(
        include_str!("../../sql/queue/select_build_state.sql"),
        &[&id.0],
    )?;
    Ok(row.map(|row| {
        let status = row.get::<_, Option<i32>>(1);
        (row.get::<_, i32>(0) != 0).then(|| {
            status
                .and_then(BuildStatus::from_code)
                .unwrap_or(BuildStatus::Aborted)
        })
    }))
}

/// # Errors
/// When the build is not queued: waiting for it would never end.
pub fn require_queued(client: &mut Client, id: BuildId) -> Result<(), Error> {
    match state(client, id)? {
        Some(None) => Ok(()),
        Some(Some(status)) => Err(Error::Setting(format!(
            "build {id} is not queued, it has ended ({}); `hydrad build restart {id}` queues it again",
            status.text()
        ))),
        None => Err(Error::Setting(format!("there is no build {id}"))),
    }
}

/// Tells when the build has ended or is gone.
pub fn watch(context: &Arc<Context>, id: BuildId) -> Receiver<()> {
    let (done, ended) = bounded(1);
    let own = context.clone();
    let watching = thread::spawn("build-one", move || {
        while !own.is_stopping() {
            match wait(&own, id) {
                Ok(()) => break,
                Err(error) => {
                    log::warn!("cannot look at build {id}: {error}; trying again");
                    std::thread::sleep(LOOK_EVERY);
                }
            }
        }
        let _ = done.send(());
    });
    if let Err(error) = watching {
        // The sender is gone with the thread that was not made, so the service leaves at once.
        log::error!("cannot start a thread: {error}");
    }
    ended
}

fn wait(context: &Context, id: BuildId) -> Result<(), DbError> {
    let mut listener = Listener::connect(&context.target, APPLICATION_NAME, &CHANNELS)?;
    let mut client = context.target.connect(APPLICATION_NAME)?;
    heartbeat::enter("waiting for the build", Patience::Unlimited);
    while !context.is_stopping() && matches!(state(&mut client, id)?, Some(None)) {
        listener.next(LOOK_EVERY)?;
    }
    Ok(())
}
