//! The machines thread: reads the machines files when they change, tells the plan, and closes connections
//! that nobody needs any more.

use std::sync::Arc;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, RecvTimeoutError};

use super::{salvage, Context};
use crate::config::machines::{shrank, MachineLine, MachinesFiles, MachinesFromEnv};
use crate::model::MachineId;
use crate::plan::event::{Event, MachineSpec};
use crate::sys::heartbeat;

/// How often the files are looked at.
const LOOK_EVERY: Duration = Duration::from_secs(2);
/// How often kept connections are looked through.
const TIDY_EVERY: Duration = Duration::from_secs(10);
/// How long a list that lost more than half of its machines is held back.
const HOLD: Duration = Duration::from_secs(300);

/// What the thread is told.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Message {
    /// Read the files now and take what they say, however it looks (SIGHUP).
    Reload,
}

struct Held {
    machines: Vec<MachineLine>,
    since: Instant,
}

/// The body of the thread.
pub fn watch(context: &Arc<Context>, mut files: MachinesFiles, inbox: &Receiver<Message>) {
    let mut current: Vec<MachineLine> = Vec::new();
    let mut held: Option<Held> = None;
    let mut told_error = false;
    let mut tidied = Instant::now();
    let mut force = true;
    loop {
        heartbeat::busy("reading the machines files");
        if force || files.changed().unwrap_or(true) {
            match read(&mut files) {
                Ok((machines, is_complete)) => {
                    told_error = false;
                    held = None;
                    let lost = current
                        .iter()
                        .any(|old| machines.iter().all(|new| new.name != old.name));
                    if !force && (shrank(&current, &machines) || (lost && !is_complete)) {
                        log::warn!(
                            "the machines file went from {} machines to {}{}; the change is held back for {} s in case \
                             it is an accident (SIGHUP applies it at once)",
                            current.len(),
                            machines.len(),
                            if is_complete { "" } else { " and its last line has no end" },
                            HOLD.as_secs()
                        );
                        held = Some(Held {
                            machines,
                            since: Instant::now(),
                        });
                    } else if force || machines != current {
                        apply(context, &current, &machines, &files);
                        current = machines;
                    }
                }
                Err(error) => {
                    if !told_error {
                        log::error!(
                            "reloading machines file: {error}; keeping the machines as they were"
                        );
                        told_error = true;
                    }
                }
            }
            force = false;
        }
        if held
            .as_ref()
            .is_some_and(|held| held.since.elapsed() >= HOLD)
        {
            if let Some(held) = held.take() {
                log::warn!("the shorter machines file is still there: applying it");
                apply(context, &current, &held.machines, &files);
                current = held.machines;
            }
        }
        if tidied.elapsed() >= TIDY_EVERY {
            tidied = Instant::now();
            heartbeat::busy("closing unused connections");
            for machine in context.machines.all() {
                machine.close_stale();
                machine.warm_up();
            }
            context.store.close_stale();
        }
        heartbeat::idle("waiting for changes");
        match inbox.recv_timeout(LOOK_EVERY) {
            Ok(Message::Reload) => force = true,
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => return,
        }
        if context.is_stopping() {
            return;
        }
    }
}

/// Reads the files and reports what is odd in them; the good lines count. Also says whether every file ends with a
/// complete line.
fn read(
    files: &mut MachinesFiles,
) -> Result<(Vec<MachineLine>, bool), crate::config::machines::MachinesError> {
    let read = files.read()?;
    for error in &read.errors {
        log::error!("machines file: {error}");
    }
    for warning in &read.warnings {
        log::warn!("machines file: {warning}");
    }
    Ok((read.machines, read.unfinished.is_empty()))
}

fn apply(context: &Arc<Context>, old: &[MachineLine], new: &[MachineLine], files: &MachinesFiles) {
    for gone in old
        .iter()
        .filter(|machine| new.iter().all(|other| other.name != machine.name))
    {
        log::info!("removing machine '{}'", gone.name);
    }
    for added in new
        .iter()
        .filter(|machine| old.iter().all(|other| other.name != machine.name))
    {
        log::info!("adding machine '{}'", added.name);
    }
    if new.is_empty() {
        log::warn!("no build machines are defined");
    }
    let machines = new
        .iter()
        .map(|line| {
            let id = context.machines.configure(&Arc::new(line.clone()));
            spec(line, id)
        })
        .collect();
    let loaded_from_file = matches!(files.from, MachinesFromEnv::Files(_)) && !new.is_empty()
        || matches!(files.from, MachinesFromEnv::ThisHost(_));
    context.tell_plan(Event::Machines {
        machines,
        loaded_from_file,
    });
    salvage::ask_machines(context);
    for machine in context.machines.all() {
        machine.warm_up();
    }
}

/// A machine as the plan wants to know it.
pub fn spec(line: &MachineLine, id: MachineId) -> MachineSpec {
    let boxed = |texts: &std::collections::BTreeSet<String>| {
        texts.iter().map(|text| text.as_str().into()).collect()
    };
    MachineSpec {
        id,
        name: line.name.as_str().into(),
        systems: boxed(&line.systems),
        slots: line.slots,
        speed_factor: line.speed_factor as f32,
        supported_features: boxed(&line.supported),
        mandatory_features: boxed(&line.mandatory),
        enabled: true,
    }
}
