//! Counts for `status` and metrics, and why a build does not build right now.
//!
//! Only looks.

use std::collections::BTreeMap;

use super::builds::BuildState;
use super::event::Hold;
use super::explanation::*;
use super::graph::State;
use super::machines::{Machine, StepTime};
use super::runs::Run;
use super::{Held, PhaseMs, Plan, Stall, Wait};
use crate::base::hash::FixedMap;
use crate::model::{BuildId, JobsetId, MachineId, Millis, Phase};

/// Steps below another that an explanation looks at.
const WALK_MAX: usize = 20_000;
/// Ready steps that it compares one with.
const COMPETITORS_MAX: usize = 200_000;
/// Dependents in which it looks for the builds that want a step.
const DEPENDENTS_LOOKED_AT: usize = 64;
/// How many of each it names.
const BUILDS_SHOWN: usize = 10;
const MACHINES_SHOWN: usize = 10;
const STUCK_SHOWN: usize = 3;
const STUCK_LOOKED_AT: usize = STUCK_SHOWN + 1;

/// What Hydra keeps in `SystemStatus`, and what operators ask beyond it.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Snapshot {
    /// When this was so.
    pub taken_at: Millis,
    /// Builds loaded and unfinished.
    pub builds_queued: u64,
    /// Builds finished since the start.
    pub builds_done: u64,
    /// Of these, those that succeeded.
    pub builds_succeeded: u64,
    /// Builds taken into the queue since the start.
    pub builds_loaded: u64,
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
    /// Ready steps by what keeps them from being started; reasons without steps too.
    pub waits: Vec<(Wait, u64)>,
    /// Nothing is started, and the log has said so.
    pub stall: Option<Stall>,
    /// How often that was said.
    pub stalls: u64,
    /// Steps made since the start.
    pub steps_created: u64,
    /// Steps failed because no machine supports them.
    pub steps_given_up: u64,
    pub steps_started: u64,
    /// Built or failed for good, on a machine.
    pub steps: StepTime,
    /// Milliseconds that runs have spent in each phase.
    pub phase_ms: PhaseMs,
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
    /// Outputs brought into the destination store without building.
    pub outputs_substituted: u64,
    /// The plan was told to start nothing new.
    pub stopped: bool,
    /// Builds that go before everything else.
    pub emergencies: Vec<BuildId>,
    /// What keeps everything from being started.
    pub holds: Vec<HoldNow>,
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
    pub standing: Standing,
    /// Since when no slot is in use; `None` if one is.
    pub idle_since: Option<Millis>,
    /// Steps built or failed for good there.
    pub steps: StepTime,
    /// Milliseconds that runs have spent in each phase here.
    pub phase_ms: PhaseMs,
    pub systems: Vec<Box<str>>,
    /// Includes the mandatory ones.
    pub supported_features: Vec<Box<str>>,
    pub mandatory_features: Vec<Box<str>>,
    pub speed_factor: f32,
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
        let mut phases: Vec<(Phase, u64)> = Phase::ALL.map(|phase| (phase, 0)).into();
        for run in self.runs.all() {
            for (phase, runs) in &mut phases {
                *runs += u64::from(*phase == run.phase);
            }
        }
        let unsupported = |&(number, _): &(usize, _)| !self.machines.supports(number as u32);
        let classes = self.index.classes.iter().enumerate();
        Snapshot {
            taken_at: now,
            builds_queued: u64::from(self.builds.queued),
            builds_done: self.totals.builds_done,
            builds_succeeded: self.totals.builds_succeeded,
            builds_loaded: self.totals.builds_loaded,
            steps_created: self.totals.steps_created,
            steps_given_up: self.totals.steps_unsupported,
            phase_ms: self.totals.phase_ms,
            waits: self.waits(),
            stall: self.standstill.stall.clone(),
            stalls: self.standstill.count,
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
            outputs_substituted: self.totals.outputs_substituted,
            stopped: self.stopped,
            emergencies: self.emergencies.iter().map(|e| e.build).collect(),
            holds: self.holds_now(now),
            machines: self.machine_statuses(now),
            jobsets: self.jobset_statuses(),
            system_types: self.system_type_statuses(now),
        }
    }

    fn machine_statuses(&self, now: Millis) -> Vec<MachineStatus> {
        let status = |machine: &Machine| MachineStatus {
            id: machine.spec.id,
            name: machine.spec.name.clone(),
            enabled: machine.listed && machine.spec.enabled,
            slots: machine.spec.slots,
            current: machine.current,
            consecutive_failures: machine.failures,
            set_aside_until: (machine.failures > 0 && machine.until > now).then_some(machine.until),
            last_error: machine.last_error.clone(),
            standing: machine.standing(now),
            idle_since: (machine.current == 0).then_some(machine.idle_since),
            steps: machine.steps,
            systems: machine.spec.systems.clone(),
            supported_features: machine.spec.supported_features.clone(),
            mandatory_features: machine.spec.mandatory_features.clone(),
            phase_ms: machine.phase_ms,
            speed_factor: machine.spec.speed_factor,
            last_fault: (machine.last_fault > Millis(0)).then_some(machine.last_fault),
        };
        self.known_machines().map(status).collect()
    }

    fn known_machines(&self) -> impl Iterator<Item = &Machine> {
        let machines = self.machines.machines.iter().flatten();
        machines.filter(|machine| machine.listed || machine.current > 0)
    }

    fn waits(&self) -> Vec<(Wait, u64)> {
        let mut waits: Vec<(Wait, u64)> = Wait::ALL.map(|wait| (wait, 0)).into();
        let classes = self.index.classes.iter().enumerate();
        for (number, class) in classes.filter(|(_, class)| class.runnable > 0) {
            let found = self.wait_of(number as u32);
            for (wait, steps) in &mut waits {
                if *wait == found {
                    *steps += u64::from(class.runnable);
                }
            }
        }
        waits
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
        match self.explain(now, &Subject::Build(build))? {
            Explanation::Build(build) => build.lines().into_iter().next(),
            _ => None,
        }
    }

    /// Why something does not build, or what it is doing; `None` if the plan does not know it. Costs a walk over what
    /// it waits for and over the ready steps that compete with it, both bounded.
    pub fn explain(&self, now: Millis, subject: &Subject) -> Option<Explanation> {
        let now = now.max(self.now);
        match subject {
            Subject::Build(id) => {
                let build = self.builds.get(self.builds.find(*id)?);
                let now = match build.state {
                    BuildState::Free => return None,
                    BuildState::Asked(at) => BuildNow::RowAsked {
                        secs: now.since(at) / 1000,
                    },
                    BuildState::Finished(ticket) if ticket > self.written => BuildNow::Finishing,
                    BuildState::Finished(_) => BuildNow::Finished,
                    BuildState::Queued => {
                        BuildNow::Queued(Box::new(self.explain_step(now, build.step)))
                    }
                };
                Some(Explanation::Build(BuildExplanation { build: *id, now }))
            }
            Subject::Drv(drv) => {
                let step = self.graph.names.find(drv)?;
                match self.graph.step(step).state {
                    State::Free | State::Valid => None,
                    _ => Some(Explanation::Step(Box::new(self.explain_step(now, step)))),
                }
            }
            Subject::Machine(name) => {
                let mut machines = self.machines.machines.iter().flatten();
                let of_name = |machine: &&Machine| machine.spec.name == *name;
                let machine = machines.rfind(of_name)?;
                let machine = self.explain_machine(now, machine);
                Some(Explanation::Machine(Box::new(machine)))
            }
        }
    }

    /// All machines that are listed or busy, in the order of their ids.
    pub fn explain_machines(&self, now: Millis) -> Vec<MachineExplanation> {
        let now = now.max(self.now);
        self.known_machines()
            .map(|machine| self.explain_machine(now, machine))
            .collect()
    }

    fn explain_step(&self, now: Millis, top: u32) -> StepExplanation {
        let walk = self.walk_down(top);
        let path = walk.path;
        let at = path.last().copied().unwrap_or(top);
        let stuck = walk.stuck.iter().filter(|&&step| step != at);
        StepExplanation {
            drv: self.graph.drv(top).into(),
            inputs_missing: self.graph.step(top).missing,
            chain: path[1..]
                .iter()
                .map(|&step| self.graph.drv(step).into())
                .collect(),
            at: self.step_now(now, at, true),
            below: walk.below,
            stuck: stuck
                .take(STUCK_SHOWN)
                .map(|&step| self.step_now(now, step, false))
                .collect(),
            holds: self.holds_now(now),
        }
    }

    /// Breadth first down from a step to those that wait for no other.
    fn walk_down(&self, top: u32) -> Walk {
        let mut walk = Walk {
            path: vec![top],
            below: Below::default(),
            stuck: Vec::new(),
        };
        if self.graph.step(top).state != State::Blocked {
            return walk;
        }
        let mut seen: FixedMap<u32, ()> = FixedMap::default();
        // Each step with the place of the one it was reached from and how deep it lies.
        let mut queue: Vec<(u32, usize, u32)> = vec![(top, 0, 0)];
        seen.insert(top, ());
        let mut end: Option<(usize, u32)> = None;
        let mut at = 0;
        while let Some(&(step, _, depth)) = queue.get(at) {
            let state = self.graph.step(step).state;
            if at > 0 {
                walk.below.count(state);
            }
            if state != State::Blocked {
                // Of those at the least depth rather one that runs.
                let runs = state == State::Running;
                let better = match end {
                    None => true,
                    Some((found, found_depth)) => {
                        depth == found_depth
                            && runs
                            && self.graph.step(queue[found].0).state != State::Running
                    }
                };
                if better {
                    end = Some((at, depth));
                }
                if walk.stuck.len() < STUCK_LOOKED_AT && self.stands_still(step) {
                    walk.stuck.push(step);
                }
            }
            for dep in self.graph.deps(step) {
                if queue.len() >= WALK_MAX {
                    walk.below.more = true;
                    break;
                }
                if seen.insert(dep, ()).is_none() {
                    queue.push((dep, at, depth + 1));
                }
            }
            at += 1;
        }
        if let Some((mut at, _)) = end {
            walk.path.clear();
            while at > 0 {
                walk.path.push(queue[at].0);
                at = queue[at].1;
            }
            walk.path.push(top);
            walk.path.reverse();
        }
        walk
    }

    /// Whether something is wrong with it, or with all machines for it.
    fn stands_still(&self, step: u32) -> bool {
        let slot = self.graph.step(step);
        match slot.state {
            State::Deferred | State::AskLater | State::Doomed => true,
            State::Runnable => !self.machines.covers(slot.class),
            _ => false,
        }
    }

    fn step_now(&self, now: Millis, step: u32, with_order: bool) -> StepNow {
        let slot = self.graph.step(step);
        let elapsed = now.since(self.began) / 1000;
        let rest = u64::from(slot.aux).saturating_sub(elapsed);
        let reason = match slot.state {
            State::Free | State::Doomed => Reason::Failing,
            State::Asking => Reason::WaitsForInspection {
                before: self.questions.waiting() as u64,
            },
            State::Inspecting => Reason::Inspecting,
            State::AskLater => Reason::InspectedAgain { in_secs: rest },
            State::Valid => Reason::Describing,
            State::Blocked => Reason::Blocked {
                inputs: slot.missing,
            },
            State::Deferred => Reason::Deferred { in_secs: rest },
            State::Running => Reason::Running(self.run_now(now, self.runs.peek(slot.aux))),
            State::Runnable => self.why_not_started(now, step),
        };
        let class = self.index.classes.get(slot.class as usize);
        let (mut builds, complete) = self.search_dependents(step, DEPENDENTS_LOOKED_AT);
        builds.sort_unstable();
        builds.dedup();
        let complete = complete && builds.len() <= BUILDS_SHOWN;
        builds.truncate(BUILDS_SHOWN);
        StepNow {
            drv: self.graph.drv(step).into(),
            system_type: class.map(|class| class.system_type.clone()),
            secs: elapsed.saturating_sub(u64::from(slot.since)),
            tries: u32::from(slot.tries),
            last_error: self.troubles.get(&step).map(|trouble| StepError {
                text: trouble.text.clone(),
                machine: trouble.machine.map(|machine| self.name_of(machine).into()),
                secs_ago: now.since(trouble.at) / 1000,
            }),
            builds: (builds, complete),
            order: (with_order && could_start(&reason)).then(|| self.order_of(step)),
            reason,
        }
    }

    /// Why no machine that supports a class takes a step of it, though none is full.
    pub(super) fn why_none_takes(&self, now: Millis, class: u32) -> String {
        let able = |machine: &&Machine| {
            machine.listed
                && self.machines.kinds[machine.kind as usize]
                    .classes
                    .has(class)
        };
        let able: Vec<&Machine> = self
            .machines
            .machines
            .iter()
            .flatten()
            .filter(able)
            .collect();
        // The one that is likely to take something first.
        let first = able.iter().min_by_key(|machine| {
            (
                machine.order.is_some(),
                machine.short.is_some(),
                machine.until,
            )
        });
        match first {
            Some(machine) => format!(
                "no machine for it takes steps: ‘{}’ {}{}",
                machine.spec.name,
                machine.standing(now).tell(),
                match able.len() {
                    1 => String::new(),
                    n => format!(", and {} more", n - 1),
                }
            ),
            None => "no machine for it takes steps".into(),
        }
    }

    fn name_of(&self, machine: u32) -> &str {
        self.machines
            .get(machine)
            .map_or("?", |machine| &machine.spec.name)
    }

    fn run_now(&self, now: Millis, run: &Run) -> RunNow {
        RunNow {
            drv: self.graph.drv(run.step).into(),
            build: run.primary,
            machine: self.name_of(run.machine).into(),
            phase: run.phase,
            phase_secs: now.since(run.phase_since) / 1000,
            secs: now.since(run.began) / 1000,
            killed: run.killed,
        }
    }

    fn holds_now(&self, now: Millis) -> Vec<HoldNow> {
        let hold = |(hold, held): (&Hold, &Held)| HoldNow {
            hold: hold.word(),
            secs: now.since(held.since) / 1000,
            why: held.why.clone(),
        };
        self.holds.iter().map(hold).collect()
    }

    fn why_not_started(&self, now: Millis, step: u32) -> Reason {
        let class = self.graph.step(step).class;
        let able = |machine: &&Machine| {
            machine.listed
                && self.machines.kinds[machine.kind as usize]
                    .classes
                    .has(class)
        };
        let able = || self.machines.machines.iter().flatten().filter(able);
        let briefs = || {
            let mut machines: Vec<&Machine> = able().collect();
            // Those that come back first.
            machines.sort_by_key(|machine| (machine.until, machine.spec.id.0));
            let shown = machines.iter().take(MACHINES_SHOWN);
            let shown: Vec<_> = shown.map(|machine| self.brief(now, machine)).collect();
            let more = machines.len() - shown.len();
            (shown, more)
        };
        if self.stopped {
            Reason::Stopping
        } else if !self.machines.known {
            Reason::MachinesUnknown
        } else if !self.machines.supports(class) {
            let since = self.began + u64::from(self.graph.step(step).since) * 1000;
            Reason::NoMachine {
                nearest: self.nearest(class),
                given_up_in_secs: self
                    .unsupported_at(class, since)
                    .map(|at| at.since(now) / 1000),
            }
        } else if !self.machines.covers(class) {
            let (machines, more) = briefs();
            Reason::NoneTakes { machines, more }
        } else if let Some(by) = self.held_back(step) {
            Reason::HeldBack(by)
        } else if !self.holds.is_empty() {
            Reason::Held
        } else if !self.writer_keeps_up() {
            Reason::DatabaseBehind {
                records: self.unwritten(),
            }
        } else {
            let (machines, more) = briefs();
            Reason::AllFull {
                machines,
                more,
                others: self.index.classes[class as usize]
                    .runnable
                    .saturating_sub(1),
            }
        }
    }

    /// The machine that lacks least of what a class needs: rather a feature than the system type.
    fn nearest(&self, class: u32) -> Option<Nearest> {
        let class = &self.index.classes[class as usize];
        let lack = |machine: &Machine| {
            let spec = &machine.spec;
            let has_system =
                &*class.platform == "builtin" || spec.systems.contains(&class.platform);
            let among = |list: &[Box<str>], feature: &str| list.iter().any(|has| **has == *feature);
            let has = |feature: &str| {
                among(&spec.supported_features, feature) || among(&spec.mandatory_features, feature)
            };
            let wanted = |feature: &str| {
                among(&class.features, feature) || (feature == "local" && class.prefer_local)
            };
            let lacks: Vec<Box<str>> = class.features.iter().filter(|f| !has(f)).cloned().collect();
            let insists: Vec<Box<str>> = spec
                .mandatory_features
                .iter()
                .filter(|feature| !wanted(feature))
                .cloned()
                .collect();
            (has_system, lacks, insists)
        };
        let machines = self.machines.machines.iter().flatten();
        let nearest = machines
            .filter(|machine| machine.listed)
            .min_by_key(|machine| {
                let (has_system, lacks, insists) = lack(machine);
                (!has_system, lacks.len() + insists.len(), machine.spec.id.0)
            })?;
        let (has_system, lacks_features, insists_on) = lack(nearest);
        Some(Nearest {
            machine: nearest.spec.name.clone(),
            lacks_system: (!has_system)
                .then(|| (class.platform.clone(), nearest.spec.systems.clone())),
            lacks_features,
            insists_on,
        })
    }

    /// The place of a ready step among those that the same machines could do, and the keys that decide it.
    fn order_of(&self, step: u32) -> Order {
        let mine = self.graph.step(step);
        let competes = |class: u32| {
            class == mine.class
                || self
                    .machines
                    .kinds
                    .iter()
                    .any(|kind| kind.classes.has(class) && kind.classes.has(mine.class))
        };
        let classes = (0..self.index.classes.len() as u32)
            .filter(|&class| self.index.classes[class as usize].runnable > 0 && competes(class));
        let steps = classes.flat_map(|class| self.index.runnable_in(class, &self.graph.steps));
        let mut steps: Vec<u32> = steps.take(COMPETITORS_MAX + 1).collect();
        let more = steps.len() > COMPETITORS_MAX;
        steps.sort_unstable();
        steps.dedup();
        let before = |&&other: &&u32| other != step && self.compare_steps(other, step).is_lt();
        let ahead: Vec<u32> = steps.iter().filter(before).copied().collect();
        let first = ahead
            .iter()
            .copied()
            .min_by(|&a, &b| self.compare_steps(a, b));
        let members = self.jobsets.members(mine.set).iter();
        let lowest = members.copied().min_by(|&a, &b| {
            self.jobsets
                .share_used(a)
                .total_cmp(&self.jobsets.share_used(b))
        });
        Order {
            position: ahead.len() as u32 + 1,
            of: steps.len() as u32,
            more,
            global_priority: mine.global,
            share_used: self.jobsets.lowest_share(mine.set),
            jobset: lowest.and_then(|jobset| {
                let jobset = self.jobsets.all().get((jobset as usize).checked_sub(1)?)?;
                Some(jobset.name.clone())
            }),
            local_priority: mine.local,
            features: self.index.classes[mine.class as usize].features.len() as u32,
            dependents: mine.rdeps_seen,
            lowest_build: mine.lowest,
            first: first.map(|first| self.first_because(first, step)),
        }
    }

    /// Why `first` comes before `step`.
    fn first_because(&self, first: u32, step: u32) -> First {
        let keys = |step: u32| {
            let slot = self.graph.step(step);
            let features = self.index.classes[slot.class as usize].features.len();
            [
                ("global priority", slot.global.to_string()),
                (
                    "share used",
                    format!("{:.6}", self.jobsets.lowest_share(slot.set)),
                ),
                ("local priority", slot.local.to_string()),
                ("number of features", features.to_string()),
                ("number of dependents", slot.rdeps_seen.to_string()),
                ("lowest build", slot.lowest.to_string()),
            ]
        };
        let pairs = keys(first).into_iter().zip(keys(step));
        let mut differing = pairs.filter(|(its, ours)| its != ours);
        let (its, ours) = differing
            .next()
            .unwrap_or_else(|| (("age", "older".into()), ("age", "younger".into())));
        First {
            drv: self.graph.drv(first).into(),
            key: its.0,
            its: its.1.into(),
            ours: ours.1.into(),
        }
    }

    fn brief(&self, now: Millis, machine: &Machine) -> MachineBrief {
        MachineBrief {
            name: machine.spec.name.clone(),
            used: machine.current,
            slots: machine.spec.slots,
            standing: machine.standing(now),
        }
    }

    fn explain_machine(&self, now: Millis, machine: &Machine) -> MachineExplanation {
        let id = machine.spec.id.0;
        let mut runs: Vec<&Run> = self.runs.all().filter(|run| run.machine == id).collect();
        runs.sort_unstable_by_key(|run| run.id);
        let StepTime {
            steps: done,
            built_ms,
            copied_ms,
        } = machine.steps;
        let average = |sum: u64| (done > 0).then(|| sum as f64 / done as f64 / 1000.0);
        let classes = &self.machines.kinds[machine.kind as usize].classes;
        let ready = self.index.runnable.meeting(classes, None);
        MachineExplanation {
            brief: self.brief(now, machine),
            systems: machine.spec.systems.clone(),
            supported_features: machine.spec.supported_features.clone(),
            mandatory_features: machine.spec.mandatory_features.clone(),
            speed_factor: machine.spec.speed_factor,
            runs: runs.into_iter().map(|run| self.run_now(now, run)).collect(),
            ready: ready
                .map(|class| self.index.classes[class as usize].runnable)
                .sum(),
            alone_for: self.alone_for(id),
            steps_done: done,
            average_build_secs: average(built_ms),
            average_copy_secs: average(copied_ms),
            idle_secs: (machine.current == 0).then(|| now.since(machine.idle_since) / 1000),
            errors: machine
                .errors
                .iter()
                .rev()
                .map(|(at, text)| (now.since(*at) / 1000, text.clone()))
                .collect(),
            holds: self.holds_now(now),
        }
    }
}

/// Whether the order among the ready steps decides.
fn could_start(reason: &Reason) -> bool {
    matches!(
        reason,
        Reason::AllFull { .. }
            | Reason::NoneTakes { .. }
            | Reason::Held
            | Reason::DatabaseBehind { .. }
    )
}

/// What lies below a step.
struct Walk {
    /// From the step down to the end of the shortest chain, both included.
    path: Vec<u32>,
    below: Below,
    stuck: Vec<u32>,
}

impl Below {
    fn count(&mut self, state: State) {
        let count = match state {
            State::Running => &mut self.running,
            State::Runnable => &mut self.ready,
            State::Deferred => &mut self.deferred,
            State::Blocked => &mut self.blocked,
            State::Asking | State::Inspecting | State::AskLater => &mut self.uninspected,
            State::Free | State::Valid | State::Doomed => return,
        };
        *count += 1;
    }
}
