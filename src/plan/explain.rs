//! Counts for `status` and metrics, and why a build does not build right now.
//!
//! Only looks.

use std::collections::BTreeMap;

use super::builds::BuildState;
use super::graph::{State, NONE};
use super::machines::StepTime;
use super::Plan;
use crate::model::{BuildId, JobsetId, MachineId, Millis, Phase};

/// How far down a chain of dependencies an explanation looks.
const CHAIN_MAX: usize = 10_000;

/// What Hydra keeps in `SystemStatus`, and what operators ask beyond it.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Snapshot {
    /// Builds loaded and unfinished.
    pub builds_queued: u64,
    /// Builds finished since the start.
    pub builds_done: u64,
    /// Builds listed as unfinished whose rows have been asked for.
    pub builds_asked: u64,
    /// Steps neither valid nor failed, inspected or not.
    pub steps_unfinished: u64,
    pub steps_runnable: u64,
    /// Waiting for their inputs.
    pub steps_blocked: u64,
    /// Waiting for their retry time.
    pub steps_deferred: u64,
    /// Not known yet whether they have to be built.
    pub steps_uninspected: u64,
    /// Runnable steps no configured machine can do.
    pub steps_unsupported: u64,
    pub steps_started: u64,
    /// Built or failed for good, on a machine.
    pub steps: StepTime,
    pub runs_active: u64,
    /// Runs in each phase, in the order of the phases; those without runs too.
    pub phases: Vec<(Phase, u64)>,
    pub retries: u64,
    /// The most tries a step has needed yet.
    pub retries_most: u32,
    pub questions_under_way: u64,
    pub questions_waiting: u64,
    pub tickets_unwritten: u64,
    pub stale_answers: u64,
    /// The plan was told to start nothing new.
    pub stopped: bool,
    /// In the order of their ids; removed ones are left out once they are idle.
    pub machines: Vec<MachineStatus>,
    /// In the order in which they were announced.
    pub jobsets: Vec<JobsetStatus>,
    /// By name.
    pub system_types: Vec<SystemTypeStatus>,
}

#[derive(Clone, Debug, PartialEq)]
pub struct MachineStatus {
    pub id: MachineId,
    pub name: Box<str>,
    /// Configured and enabled.
    pub enabled: bool,
    pub slots: u32,
    /// Slots in use.
    pub current: u32,
    pub consecutive_failures: u32,
    /// Set aside until then; `None` if it is not.
    pub set_aside_until: Option<Millis>,
    pub last_error: Option<Box<str>>,
    /// Since when no slot is in use; `None` if one is.
    pub idle_since: Option<Millis>,
    /// Steps built or failed for good there.
    pub steps: StepTime,
    pub systems: Vec<Box<str>>,
    /// Includes the mandatory ones.
    pub supported_features: Vec<Box<str>>,
    pub mandatory_features: Vec<Box<str>>,
    /// When it last had a fault.
    pub last_fault: Option<Millis>,
}

#[derive(Clone, Debug, PartialEq)]
pub struct JobsetStatus {
    pub id: JobsetId,
    pub name: Box<str>,
    pub shares: u32,
    /// Machine seconds within the scheduling window.
    pub seconds: u64,
    /// `seconds / shares`.
    pub share_used: f64,
}

/// What auto-scalers read.
#[derive(Clone, Debug, PartialEq)]
pub struct SystemTypeStatus {
    /// `platform:feature,feature`.
    pub name: Box<str>,
    pub runnable: u64,
    pub running: u64,
    /// Seconds that the runnable steps have waited, summed.
    pub wait_secs: u64,
    /// When the last run of this type ended (or the type was first seen).
    pub last_active: Millis,
}

impl Plan {
    /// The state of everything. Costs as many steps as there are machines, jobsets, system types and runs.
    pub fn snapshot(&self, now: Millis) -> Snapshot {
        let now = now.max(self.now);
        let count = |state: State| u64::from(self.states[state as usize]);
        let uninspected = count(State::Asking) + count(State::Inspecting) + count(State::AskLater);
        let waiting = count(State::Blocked) + count(State::Runnable) + count(State::Deferred);
        let mut phases: Vec<(Phase, u64)> = [
            Phase::Preparing,
            Phase::Connecting,
            Phase::SendingInputs,
            Phase::Building,
            Phase::ReceivingOutputs,
            Phase::PostProcessing,
        ]
        .map(|phase| (phase, 0))
        .into();
        for run in self.runs.all() {
            for (phase, runs) in &mut phases {
                *runs += u64::from(*phase == run.phase);
            }
        }
        let unsupported = |&(number, _): &(usize, _)| !self.machines.supports(number as u32);
        let classes = self.index.classes.iter().enumerate();
        Snapshot {
            builds_queued: u64::from(self.builds.queued),
            builds_done: self.totals.builds_done,
            builds_asked: u64::from(self.builds.asked),
            steps_unfinished: uninspected + waiting + count(State::Running) + count(State::Doomed),
            steps_runnable: count(State::Runnable),
            steps_blocked: count(State::Blocked),
            steps_deferred: count(State::Deferred),
            steps_uninspected: uninspected,
            steps_unsupported: classes
                .filter(unsupported)
                .map(|(_, class)| u64::from(class.runnable))
                .sum(),
            steps_started: self.runs.started(),
            steps: self.totals.steps,
            runs_active: self.runs.len() as u64,
            phases,
            retries: self.totals.retries,
            retries_most: self.totals.tries_most,
            questions_under_way: self.questions.under_way() as u64,
            questions_waiting: self.questions.waiting() as u64,
            tickets_unwritten: self.unwritten(),
            stale_answers: self.totals.stale_answers,
            stopped: self.stopped,
            machines: self.machine_statuses(now),
            jobsets: self.jobset_statuses(),
            system_types: self.system_type_statuses(now),
        }
    }

    fn machine_statuses(&self, now: Millis) -> Vec<MachineStatus> {
        let known = self
            .machines
            .machines
            .iter()
            .flatten()
            .filter(|machine| machine.listed || machine.current > 0);
        let status = |machine: &super::machines::Machine| MachineStatus {
            id: machine.spec.id,
            name: machine.spec.name.clone(),
            enabled: machine.listed && machine.spec.enabled,
            slots: machine.spec.slots,
            current: machine.current,
            consecutive_failures: machine.failures,
            set_aside_until: (machine.failures > 0 && machine.until > now).then_some(machine.until),
            last_error: machine.last_error.clone(),
            idle_since: (machine.current == 0).then_some(machine.idle_since),
            steps: machine.steps,
            systems: machine.spec.systems.clone(),
            supported_features: machine.spec.supported_features.clone(),
            mandatory_features: machine.spec.mandatory_features.clone(),
            last_fault: (machine.last_fault > Millis(0)).then_some(machine.last_fault),
        };
        known.map(status).collect()
    }

    fn jobset_statuses(&self) -> Vec<JobsetStatus> {
        let status = |jobset: &super::shares::Jobset| JobsetStatus {
            id: jobset.id,
            name: jobset.name.clone(),
            shares: jobset.shares,
            seconds: jobset.seconds,
            share_used: jobset.share_used,
        };
        self.jobsets.all().iter().map(status).collect()
    }

    fn system_type_statuses(&self, now: Millis) -> Vec<SystemTypeStatus> {
        let mut types: BTreeMap<&str, SystemTypeStatus> = BTreeMap::new();
        let now = (now.since(self.began) / 1000) as u32;
        for class in &self.index.classes {
            let entry = types
                .entry(&class.system_type)
                .or_insert_with(|| SystemTypeStatus {
                    name: class.system_type.clone(),
                    runnable: 0,
                    running: 0,
                    wait_secs: 0,
                    last_active: Millis(0),
                });
            entry.runnable += u64::from(class.runnable);
            entry.running += u64::from(class.running);
            entry.wait_secs += class.wait_secs(now);
            entry.last_active = entry.last_active.max(class.last_active);
        }
        types.into_values().collect()
    }

    /// One line: why this build is not building now, or what of it is. `None` if the plan does not know it.
    pub fn why(&self, now: Millis, build: BuildId) -> Option<String> {
        let now = now.max(self.now);
        let build = self.builds.get(self.builds.find(build)?);
        match build.state {
            BuildState::Free => None,
            BuildState::Asked(at) => Some(format!(
                "its row is being read, since {}s",
                now.since(at) / 1000
            )),
            BuildState::Finished(ticket) if ticket > self.written => {
                Some("it is finished; the database has yet to hear of it".into())
            }
            BuildState::Finished(_) => Some("it is finished".into()),
            BuildState::Queued => Some(self.why_step(now, build.step)),
        }
    }

    fn why_step(&self, now: Millis, top: u32) -> String {
        let mut step = top;
        // Down one dependency after the other, to one that does not wait for another.
        for _ in 0..CHAIN_MAX {
            if self.graph.step(step).state != State::Blocked {
                break;
            }
            // Rather one that runs than one that waits.
            let mut next = NONE;
            for dep in self.graph.deps(step).take(1_000) {
                if next == NONE || self.graph.step(dep).state == State::Running {
                    next = dep;
                }
            }
            if next == NONE {
                break;
            }
            step = next;
        }
        let told = self.tell_step(now, step);
        if step == top {
            return told;
        }
        let missing = self.graph.step(top).missing;
        let others = match missing {
            1 => String::new(),
            _ => format!(" (and {} other inputs)", missing - 1),
        };
        format!("waits for ‘{}’{others}, which {told}", self.graph.drv(step))
    }

    fn tell_step(&self, now: Millis, step: u32) -> String {
        let slot = self.graph.step(step);
        let elapsed = now.since(self.began) / 1000;
        let age = elapsed.saturating_sub(u64::from(slot.since));
        let rest = u64::from(slot.aux).saturating_sub(elapsed);
        match slot.state {
            State::Free | State::Doomed => "has failed; this is being recorded".into(),
            State::Asking => format!(
                "waits to be inspected, {} before it",
                self.questions.waiting()
            ),
            State::Inspecting => format!("is being inspected, since {age}s"),
            State::AskLater => format!("is inspected again in {rest}s, after a fault of this host"),
            State::Valid => {
                format!("is built already; its outputs are being described, since {age}s")
            }
            State::Blocked => format!("waits for {} inputs", slot.missing),
            State::Deferred => format!("is tried again in {rest}s (failed tries: {})", slot.tries),
            State::Running => {
                let run = self.runs.peek(slot.aux);
                let machine = self
                    .machines
                    .get(run.machine)
                    .map_or("?", |machine| &machine.spec.name);
                let phase_secs = now.since(run.phase_since) / 1000;
                let killed = if run.killed { ", being killed" } else { "" };
                format!(
                    "is {} on ‘{machine}’ since {phase_secs}s{killed}",
                    run.phase.text()
                )
            }
            State::Runnable => self.tell_runnable(now, slot.class, age),
        }
    }

    fn tell_runnable(&self, now: Millis, class: u32, age: u64) -> String {
        let name = &self.index.classes[class as usize].system_type;
        let reason = if self.stopped {
            "nothing new is started any more".into()
        } else if !self.machines.known {
            "the list of machines has not been read yet".into()
        } else if !self.machines.supports(class) {
            "no machine supports that".into()
        } else if !self.machines.covers(class) {
            let able = |machine: &&super::machines::Machine| {
                machine.listed
                    && self.machines.kinds[machine.kind as usize]
                        .classes
                        .has(class)
            };
            let first = self
                .machines
                .machines
                .iter()
                .flatten()
                .filter(able)
                .min_by_key(|machine| machine.until);
            match first {
                Some(machine) => format!(
                    "every machine for it is set aside, ‘{}’ for {}s more: {}",
                    machine.spec.name,
                    machine.until.since(now) / 1000,
                    machine.last_error.as_deref().unwrap_or("no message")
                ),
                None => "every machine for it is disabled".into(),
            }
        } else if !self.writer_keeps_up() {
            format!("the database is {} records behind", self.unwritten())
        } else {
            let runnable = self.index.classes[class as usize].runnable;
            format!(
                "all machines for it are busy, {} others wait for them too",
                runnable.saturating_sub(1)
            )
        };
        format!("is ready since {age}s and waits for a machine of type {name}: {reason}")
    }
}
