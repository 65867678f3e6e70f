//! What keeps a runnable step from starting although a machine would take it: caps, and emergencies.
//!
//! **Caps** on the running steps of projects and jobsets are counted in `shares`.
//!
//! **An emergency** is a build that goes before everything else. All steps that it needs are *urgent*: first in every
//! order, whatever caps say. And every machine that could do a step that an emergency still waits for takes urgent steps
//! alone, so that the machine is free when that step's turn comes, also while the step is still blocked by others. What
//! runs goes on. An emergency is over when its build has ended, or at its time; then every mark is void at once and the
//! remaining emergencies mark their steps anew.
//!
//! Does not know who declared an emergency.

use std::cmp::Reverse;

use super::action::Level;
use super::builds::BuildState;
use super::graph::State;
use super::{Plan, Timer};
use crate::base::bits::Bits;
use crate::model::{BuildId, Millis, UnixSecs};

/// Emergencies at the same time; more are left out, the highest ids.
pub const EMERGENCIES_MAX: usize = 1_000;

/// A build that goes before everything else.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Emergency {
    pub build: BuildId,
    /// `None`: until the build has ended.
    pub until: Option<Millis>,
    /// The build was queued here: when it is not any more, it has ended.
    seen: bool,
}

/// Why a runnable step may not start.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum HeldBack {
    /// All machines that could do it are kept free for these builds.
    Emergency(Vec<BuildId>),
    /// Every jobset that wants it has reached its cap, or its project has; one of them, and the cap.
    Cap { whose: Box<str>, steps: u32 },
}

impl HeldBack {
    pub fn tell(&self) -> String {
        match self {
            HeldBack::Emergency(builds) => {
                let builds: Vec<String> = builds.iter().map(ToString::to_string).collect();
                format!(
                    "the machines that could do it are kept free for the emergency of build {}",
                    builds.join(", ")
                )
            }
            HeldBack::Cap { whose, steps } => {
                format!(
                    "‘{whose}’ has reached its cap of {steps} running steps (max_running_steps)"
                )
            }
        }
    }
}

/// Which classes may start something now.
pub struct Gate {
    startable: Bits,
    /// Classes that an emergency waits for, and those of them that could start something urgent.
    held: Option<(Bits, Bits)>,
}

impl Gate {
    pub fn startable(&self) -> &Bits {
        &self.startable
    }

    pub fn held(&self) -> Option<(&Bits, &Bits)> {
        self.held.as_ref().map(|(held, urgent)| (held, urgent))
    }
}

impl Plan {
    /// `None` if nothing is held back.
    pub(super) fn gate(&self) -> Option<Gate> {
        let emergency = !self.emergencies.is_empty();
        if !emergency && !self.jobsets.any_full() {
            return None;
        }
        let held = emergency.then(|| {
            (
                self.index.classes_with(|class| class.urgent_waiting > 0),
                self.index.classes_with(|class| class.urgent_runnable > 0),
            )
        });
        Some(Gate {
            startable: self.index.startable(&self.jobsets),
            held,
        })
    }

    /// Why a runnable step is held back, if it is.
    pub(super) fn held_back(&self, step: u32) -> Option<HeldBack> {
        let slot = self.graph.step(step);
        if slot.state != State::Runnable || self.index.is_urgent(slot) {
            return None;
        }
        if let Some(Gate {
            held: Some((held, _)),
            ..
        }) = self.gate()
        {
            let mut able = self
                .machines
                .kinds
                .iter()
                .filter(|kind| kind.machines > 0 && kind.classes.has(slot.class))
                .peekable();
            if able.peek().is_some() && able.all(|kind| kind.classes.meets(&held, None)) {
                let builds = self.emergencies.iter().map(|e| e.build).collect();
                return Some(HeldBack::Emergency(builds));
            }
        }
        if !self.jobsets.is_held(slot.set) {
            return None;
        }
        let members = self.jobsets.members(slot.set);
        let (whose, steps) = members.iter().find_map(|&j| self.jobsets.reached_cap(j))?;
        Some(HeldBack::Cap {
            whose: whose.into(),
            steps,
        })
    }

    pub(super) fn is_emergency(&self, build: BuildId) -> bool {
        self.emergencies.iter().any(|e| e.build == build)
    }

    /// Takes the complete list of emergencies.
    pub(super) fn take_emergencies(&mut self, listed: Vec<(BuildId, Option<UnixSecs>)>) {
        let mut listed: Vec<Emergency> = listed
            .into_iter()
            .map(|(build, until)| Emergency {
                build,
                until: until.map(|at| Millis(u64::try_from(at).unwrap_or(0).saturating_mul(1000))),
                seen: false,
            })
            .filter(|e| !self.is_over(e))
            .collect();
        listed.sort_unstable_by_key(|e| e.build);
        listed.dedup_by_key(|e| e.build);
        listed.truncate(EMERGENCIES_MAX);
        let old = std::mem::take(&mut self.emergencies);
        let gone: Vec<BuildId> = old
            .iter()
            .map(|e| e.build)
            .filter(|id| !listed.iter().any(|e| e.build == *id))
            .collect();
        for emergency in &mut listed {
            let known = old.iter().find(|e| e.build == emergency.build);
            emergency.seen = known.is_some_and(|e| e.seen);
            if known.is_none() {
                let text = format!(
                    "emergency: build {} goes before everything else, and machines that could do its steps take nothing else",
                    emergency.build
                );
                self.say(Level::Warn, text);
            }
            if let Some(at) = emergency.until {
                self.timers.push(Reverse((at, Timer::Emergency)));
            }
        }
        self.emergencies = listed;
        self.index.emergency = self.index.emergency.max(1);
        if gone.is_empty() {
            self.mark_emergencies();
        } else {
            self.end_emergencies(&gone);
        }
    }

    /// Ends those that are over. Called in every turn, before the runnable steps are back in the index.
    pub(super) fn watch_emergencies(&mut self) {
        if self.emergencies.is_empty() {
            return;
        }
        let mut over = Vec::new();
        for at in 0..self.emergencies.len() {
            let mut emergency = self.emergencies[at];
            emergency.seen |= self.builds.is_queued(emergency.build);
            self.emergencies[at] = emergency;
            if self.is_over(&emergency) {
                over.push(emergency.build);
            }
        }
        if !over.is_empty() {
            self.emergencies.retain(|e| !over.contains(&e.build));
            self.end_emergencies(&over);
        }
    }

    fn is_over(&self, emergency: &Emergency) -> bool {
        let late = emergency.until.is_some_and(|until| until <= self.now);
        let known = self.builds.find(emergency.build);
        let ended = match known.map(|slot| self.builds.get(slot).state) {
            Some(BuildState::Finished(_)) => true,
            Some(_) => false,
            None => emergency.seen,
        };
        late || ended
    }

    /// The steps of those that ended are urgent no more, unless one that remains wants them.
    fn end_emergencies(&mut self, over: &[BuildId]) {
        for build in over {
            let rest = match self.emergencies.len() {
                0 => "other steps start again".to_owned(),
                left => format!("{left} more are not"),
            };
            self.say(
                Level::Warn,
                format!("the emergency of build {build} is over; {rest}"),
            );
        }
        let mut runnable = Vec::new();
        for class in 0..self.index.classes.len() as u32 {
            if self.index.classes[class as usize].urgent_runnable > 0 {
                runnable.extend(self.index.runnable_in(class, &self.graph.steps));
            }
        }
        for step in runnable {
            if self.index.is_urgent(self.graph.step(step)) {
                self.touch_key(step);
            }
        }
        for class in &mut self.index.classes {
            assert_eq!(
                class.urgent_runnable, 0,
                "BUG: an urgent step is still in the index"
            );
            class.urgent_waiting = 0;
        }
        self.index.emergency = self.index.emergency.wrapping_add(1).max(1);
        self.mark_emergencies();
    }

    fn mark_emergencies(&mut self) {
        for at in 0..self.emergencies.len() {
            let build = self.emergencies[at].build;
            if self.builds.is_queued(build) {
                if let Some(slot) = self.builds.find(build) {
                    self.wish_for(slot);
                }
            }
        }
    }
}
