//! The room thread: looks how much space is left here and on the machines in use, and has the plan start nothing where it
//! is too little, until there is more.
//!
//! A machine is asked with `df`, by the way that leads to its store. One that cannot be asked is none that is short.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::Arc;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, RecvTimeoutError};

use super::connection::{free_bytes, Asked, Trouble};
use super::machine::Machine;
use super::trial::ASK_MAX;
use super::Context;
use crate::base::text::bytes_text;
use crate::config::settings::Settings;
use crate::plan::event::{Event, Hold};
use crate::store::uri::StoreUri;
use crate::sys::heartbeat;
use crate::sys::kill::KillSwitch;
use crate::sys::space::{free_in, needed};
use crate::sys::thread;

/// Machines asked at the same time.
const ASKING_MAX: usize = 8;
/// A machine tells its Nix version this often.
const VERSION_EVERY: Duration = Duration::from_secs(3600);
/// A machine that was short and cannot be asked so many times counts as one that is not: its next step tells.
const SILENCES_MAX: u32 = 10;

/// A folder of this host that steps need room in.
pub struct Place {
    what: &'static str,
    path: PathBuf,
}

/// The folders whose room matters here.
pub fn places(settings: &Settings, context: &Context) -> Vec<Place> {
    let place = |what, path| Place { what, path };
    let mut places = vec![
        place("the store", PathBuf::from(&context.store.dir().0)),
        place("build logs", settings.data_dir.join("build-logs")),
        place("HYDRA_DATA", settings.data_dir.clone()),
    ];
    let uri = settings.store_uri.as_deref().map(StoreUri::parse);
    if let Some(cache) = uri.and_then(Result::ok).filter(|uri| uri.scheme == "file") {
        places.push(place("the binary cache", PathBuf::from(cache.place)));
    }
    places
}

/// What is remembered between two looks.
#[derive(Default)]
pub struct Room {
    held: bool,
    machines: Vec<Known>,
}

/// Of the machine with that id.
#[derive(Clone, Default)]
struct Known {
    short: bool,
    silences: u32,
    version_asked: Option<Instant>,
}

impl Room {
    /// Looks at this host.
    pub fn look_here(&mut self, context: &Context, places: &[Place]) {
        let min = context.limits().min_free_space;
        let needed = needed(min, self.held);
        let short = places
            .iter()
            .filter(|_| min > 0)
            .filter_map(|place| Some((place, free_in(&place.path)?)))
            .min_by_key(|(_, free)| *free)
            .filter(|(_, free)| *free < needed);
        let why = short.map(|(place, free)| {
            format!(
                "only {} are free in {} ({}), less than min_free_space ({})",
                bytes_text(free),
                place.path.display(),
                place.what,
                bytes_text(needed)
            )
        });
        match &why {
            Some(why) if !self.held => {
                log::warn!("nothing is started until there is more room: {why}");
            }
            None if self.held => log::info!("there is room again on this host: steps are started"),
            _ => {}
        }
        let news = why.is_some() || self.held;
        self.held = why.is_some();
        if news {
            context.tell_plan(Event::Hold {
                hold: Hold::Disk,
                why: why.map(Into::into),
            });
        }
    }

    /// Asks the machines that had a step since they were asked last, and those that were short.
    fn ask_machines(&mut self, context: &Arc<Context>, kill: &Arc<KillSwitch>) {
        let all = context.machines.all();
        self.machines.resize(all.len(), Known::default());
        let min = context.limits().machine_min_free_space;
        let mut asked = Vec::new();
        for (machine, known) in all.iter().zip(&mut self.machines) {
            if machine.line().is_localhost {
                let free = free_in(Path::new(&context.store.dir().0));
                machine.learn(|facts| facts.free_bytes = free);
            }
            if min == 0 {
                if std::mem::take(&mut known.short) {
                    tell(context, machine, None);
                }
            } else if machine.take_used() | known.short {
                asked.push((machine.clone(), known.clone()));
            }
        }
        for (machine, known) in ask_all(context, kill, asked, min) {
            if let Some(slot) = self.machines.get_mut(machine.id.0 as usize) {
                *slot = known;
            }
        }
    }
}

/// Asks several at a time.
fn ask_all(
    context: &Arc<Context>,
    kill: &Arc<KillSwitch>,
    asked: Vec<(Arc<Machine>, Known)>,
    min: u64,
) -> Vec<(Arc<Machine>, Known)> {
    let asked = Arc::new(asked);
    let next = Arc::new(AtomicUsize::new(0));
    let workers = (1..=asked.len().min(ASKING_MAX)).filter_map(|number| {
        let (context, kill, asked, next) =
            (context.clone(), kill.clone(), asked.clone(), next.clone());
        let work = move || {
            let mut answers = Vec::new();
            while let Some((machine, known)) = asked.get(next.fetch_add(1, Ordering::Relaxed)) {
                let mut known = known.clone();
                ask(&context, &kill, machine, &mut known, min);
                answers.push((machine.clone(), known));
            }
            answers
        };
        // Without a thread they are asked next time.
        thread::spawn(format!("room-{number}"), work).ok()
    });
    let workers: Vec<_> = workers.collect();
    let joined = workers.into_iter().filter_map(|worker| worker.join().ok());
    joined.flatten().collect()
}

fn ask(context: &Context, kill: &Arc<KillSwitch>, machine: &Machine, known: &mut Known, min: u64) {
    if known
        .version_asked
        .is_none_or(|at| at.elapsed() >= VERSION_EVERY)
    {
        known.version_asked = Some(Instant::now());
        if let Ok(said) = machine.ask(kill, ASK_MAX, Asked::NixVersion) {
            let version = said.lines().next().unwrap_or_default().trim().to_owned();
            machine.learn(|facts| facts.nix_version = Some(version).filter(|v| !v.is_empty()));
        }
    }
    let line = machine.line();
    let Some(folder) = line.store_folder(&context.store.dir().0) else {
        return;
    };
    // This host's room is everybody's; it is looked at without asking.
    if line.is_localhost {
        return;
    }
    let free = match machine.ask(kill, ASK_MAX, Asked::FreeSpace(&folder)) {
        Ok(said) => free_bytes(&said),
        Err(Trouble::Killed) => return,
        Err(Trouble::Machine(why) | Trouble::Ours(why)) => {
            log::debug!("free space is not known: {why}");
            known.silences = known.silences.saturating_add(1);
            if !known.short || known.silences < SILENCES_MAX {
                return;
            }
            None
        }
    };
    known.silences = 0;
    machine.learn(|facts| facts.free_bytes = free);
    let needed = needed(min, known.short);
    let why = free.filter(|free| *free < needed).map(|free| {
        format!(
            "only {} are free in {folder} there, less than machine_min_free_space ({})",
            bytes_text(free),
            bytes_text(needed)
        )
    });
    if why.is_some() || known.short {
        known.short = why.is_some();
        tell(context, machine, why);
    }
}

fn tell(context: &Context, machine: &Machine, why: Option<String>) {
    context.tell_plan(Event::Shortage {
        machine: machine.id,
        why: why.map(Into::into),
    });
}

/// The body of the thread. A message means: look now.
pub fn watch(
    context: &Arc<Context>,
    mut room: Room,
    places: &[Place],
    interval: Duration,
    kill: &Arc<KillSwitch>,
    inbox: &Receiver<()>,
) {
    loop {
        heartbeat::busy("looking at free space");
        room.look_here(context, places);
        heartbeat::idle("waiting for machines to tell their free space");
        room.ask_machines(context, kill);
        heartbeat::idle("waiting until free space is looked at again");
        match inbox.recv_timeout(interval.max(Duration::from_secs(1))) {
            Ok(()) | Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => return,
        }
        if context.is_stopping() {
            return;
        }
    }
}
