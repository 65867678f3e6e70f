//! The command that hears when something changes in `machineTypes`, for those who start and stop machines by demand.
//!
//! A thread of its own looks every ten seconds and runs one command at a time, so whatever the command does, nothing
//! else waits for it.

use std::process::Command;
use std::time::{Duration, Instant};

use super::{status, Context};
use crate::plan::Snapshot;
use crate::sys::child::{self, describe_status};
use crate::sys::heartbeat::{self, Patience};

/// How often the plan is asked; the command runs at most that often.
const LOOK_EVERY: Duration = Duration::from_secs(10);
/// How long the command may take.
const RUN_MAX: Duration = Duration::from_secs(60);
/// A stop is noticed within this time.
const STOP_CHECK: Duration = Duration::from_millis(200);

/// What a change is: waiting times change all the time.
type Counts = Vec<(Box<str>, u64, u64)>;

fn counts(snapshot: &Snapshot) -> Counts {
    let types = snapshot.system_types.iter();
    types
        .map(|kind| (kind.name.clone(), kind.runnable, kind.running))
        .collect()
}

/// Runs until the service stops. A command that failed is run again at the next look, change or not.
pub fn watch(context: &Context, command: &str) {
    let mut told: Option<Counts> = None;
    while !context.is_stopping() {
        heartbeat::enter("looking at the machine types", Patience::Unlimited);
        if let Some(snapshot) = context.snapshot(STOP_CHECK, LOOK_EVERY) {
            let now = counts(&snapshot);
            if told.as_ref() != Some(&now) {
                heartbeat::enter("running machine_types_hook", Patience::Deadline(RUN_MAX));
                told = match run(command, &status::machine_types(&snapshot).to_string()) {
                    Ok(()) => Some(now),
                    Err(message) => {
                        log::warn!("machine_types_hook: {message}");
                        None
                    }
                };
            }
        }
        heartbeat::enter("waiting to look again", Patience::Unlimited);
        let until = Instant::now() + LOOK_EVERY;
        while !context.is_stopping() && Instant::now() < until {
            std::thread::sleep(STOP_CHECK);
        }
    }
}

fn run(command: &str, json: &str) -> Result<(), String> {
    let mut shell = Command::new("/bin/sh");
    shell.args(["-c", command]);
    let ended = child::run_with_input(&mut shell, json.as_bytes(), RUN_MAX)
        .map_err(|error| format!("cannot run it: {}", child::plain_error(&error)))?;
    match ended.status {
        Some(status) if status.success() && !ended.late => Ok(()),
        _ if ended.late => Err(format!(
            "it did not end within {} s: {}",
            RUN_MAX.as_secs(),
            ended.words
        )),
        status => Err(format!(
            "it failed ({}): {}",
            status.map_or_else(|| "no status".to_owned(), describe_status),
            ended.words
        )),
    }
}
