//! From a runnable step to a run on a machine, and what the run's end means.
//!
//! Three faults are kept apart (D10): the build's own (fails, or counts as a try), the machine's (the machine is set
//! aside, the step goes to another at once), and ours (the step waits; nobody is blamed).

use std::cmp::Reverse;

use super::action::{Action, FinishStep, Level, Record, Start};
use super::event::{Outcome, RunEnd};
use super::fail::{Cause, FailedRun};
use super::graph::State;
use super::holds::Gate;
use super::ingest::{limit, limit_secs};
use super::machines::{growing_ms, jitter_ms, Machines, StepTime};
use super::runs::Run;
use super::suspicion::{Suspicion, TRIES_MAX};
use super::{Plan, Timer};
use crate::model::{BuildId, BuildStatus, MachineId, Phase, RunId, Ticket};

/// Runs started in one turn.
const STARTS_PER_TURN: u32 = 1_000;
/// Starts whose memory is fetched together.
const STARTS_TOGETHER: usize = 64;
/// Dependents looked at to count the builds that want a step, for the log line.
pub(super) const DEPENDENTS_LOOKED_AT: usize = 8;
/// Dependents of a step whose limits are compared when its run begins.
const LIMITS_STEPS_MAX: usize = 64;

/// A step that has its slot; nobody has been told yet.
#[derive(Clone, Copy)]
pub struct Starting {
    /// Slot of its run.
    pub run: u32,
    pub step: u32,
    pub ticket: Ticket,
}

impl Plan {
    /// Starts what can be started: again and again the best machine takes the best step it supports.
    pub(super) fn place(&mut self) {
        let mut starting = std::mem::take(&mut self.starting);
        self.placing = self.choose(&mut starting);
        for block in starting.chunks(STARTS_TOGETHER) {
            self.fetch_starts(block);
            block.iter().for_each(|start| self.start(*start));
        }
        starting.clear();
        self.starting = starting;
    }

    /// Gives steps their slots. True if there may be more to start.
    fn choose(&mut self, starting: &mut Vec<Starting>) -> bool {
        if self.following || self.stopped || !self.machines.known || !self.holds.is_empty() {
            return false;
        }
        if !self.failing.is_empty() || !self.unwanted.is_empty() {
            // Half a failure or a drop: some runnable steps may be wanted by nobody. The next turn goes on.
            return false;
        }
        self.choose_elsewhere(starting);
        for _ in 0..STARTS_PER_TURN {
            if self.index.runnable_steps == 0 || !self.writer_keeps_up() {
                return false;
            }
            let gate = self.gate();
            let runnable = gate.as_ref().map_or(&self.index.runnable, Gate::startable);
            let held = gate.as_ref().and_then(Gate::held);
            let choice = self.machines.best(runnable, held, &self.settings, self.now);
            if self.audited && choice.is_none() {
                assert_eq!(self.plain_choice(), None, "BUG: something could be started");
            }
            let Some(choice) = choice else { return false };
            let best = self.index.best(
                self.machines.mask(choice),
                choice.urgent_only,
                &self.graph.steps,
                &self.jobsets,
            );
            let step =
                best.expect("BUG: a machine was chosen for runnable steps that are not there");
            if self.audited {
                let plain = self.plain_choice();
                assert_eq!(
                    Some((choice.machine, step)),
                    plain,
                    "BUG: not the best machine and step"
                );
            }
            let run = self.occupy(step, choice.machine);
            let ticket = self.next_ticket();
            starting.push(Starting { run, step, ticket });
        }
        true
    }

    /// A runnable step takes a slot of a machine. Returns the slot of its run, which has no owner of its row yet.
    pub(super) fn occupy(&mut self, step: u32, machine: u32) -> u32 {
        let id = self.runs.next_id();
        let payer = self.jobsets.occupy(self.graph.step(step).set);
        let run = self.runs.add(Run {
            id,
            step,
            machine,
            primary: BuildId::default(),
            payer,
            phase: Phase::Preparing,
            phase_since: self.now,
            began: self.now,
            holds_slot: true,
            killed: false,
            evicted: false,
        });
        self.machines.occupy(machine, id, self.now);
        self.set_state(step, State::Running);
        self.graph.step_mut(step).aux = run;
        run
    }

    /// Finds the owner of a new run's row; returns the step's own builds.
    pub(super) fn own(&mut self, run: u32) -> Vec<BuildId> {
        let step = self.runs.peek(run).step;
        let builds = self.builds.of_step(step, &self.graph);
        let announce: Vec<_> = builds.into_iter().map(|(id, _)| id).collect();
        let first = announce.first().copied();
        let primary = first.or_else(|| self.lowest_dependent(step));
        self.runs.at(run).primary = primary.expect("BUG: a runnable step that no build wants");
        announce
    }

    fn start(&mut self, starting: Starting) {
        let Starting { run, step, ticket } = starting;
        let announce = self.own(run);
        let above = self.graph.rdeps_with_builds(step, DEPENDENTS_LOOKED_AT);
        let wanted_by = (announce.len() as u32 + above).max(1);
        let (max_silent, timeout) = self.limits_of(step, self.runs.peek(run).primary);
        let (max_silent_secs, timeout_secs) = (limit_secs(max_silent), limit_secs(timeout));
        let repeats = self.jobsets.repeats(self.graph.step(step).set);
        let drv = self.drv(step);
        let run = self.runs.peek(run);
        self.out.push(Action::Start(Start {
            run: run.id,
            ticket,
            drv,
            machine: Machines::id(run.machine),
            primary: run.primary,
            announce,
            max_silent_secs,
            timeout_secs,
            repeats,
            wanted_by,
        }));
    }

    /// The limits of a run that begins: the largest of those of the builds that want its step now. Among very many
    /// dependents, of all that ever wanted it.
    fn limits_of(&self, step: u32, primary: BuildId) -> (u32, u32) {
        let slot = self.graph.step(step);
        let ever = (slot.max_silent, slot.timeout);
        let of = |id: BuildId| {
            let build = self.builds.get(self.builds.find(id)?);
            Some((limit(build.max_silent), limit(build.timeout)))
        };
        // Nearly always all have the same, and nothing has fallen if nobody has left.
        if !self.limits_fall || of(primary) == Some(ever) {
            return ever;
        }
        let mut most = None;
        let complete = self.walk_dependents(step, LIMITS_STEPS_MAX, |build| {
            let (silent, timeout) = most.unwrap_or((0, 0));
            let largest = (
                limit(build.max_silent).max(silent),
                limit(build.timeout).max(timeout),
            );
            most = Some(largest);
            largest == ever
        });
        most.filter(|_| complete).unwrap_or(ever)
    }

    pub(super) fn run_phase(&mut self, id: RunId, phase: Phase) {
        let now = self.now;
        let Some(run) = self.runs.find(id) else {
            self.totals.stale_answers += 1;
            return;
        };
        if run.phase == phase {
            return;
        }
        let spent = (run.phase, now.since(run.phase_since));
        run.phase = phase;
        run.phase_since = now;
        let machine = run.machine;
        let leaves = run.holds_slot && phase >= Phase::ReceivingOutputs;
        run.holds_slot &= !leaves;
        if phase >= Phase::Building {
            self.moves();
            // One that breaks what is built there gets as far as this too.
            if self
                .machines
                .get(machine)
                .is_some_and(|m| m.broken.is_none())
            {
                self.machines.works(machine, now);
            }
        }
        if leaves {
            self.machines.vacate(machine, now);
        }
        self.spend(machine, spent);
        self.record(Record::Phase { run: id, phase });
    }

    /// A run on this machine was in a phase for so many milliseconds.
    fn spend(&mut self, machine: u32, (phase, ms): (Phase, u64)) {
        self.totals.phase_ms[phase.index()] += ms;
        self.machines.spend(machine, phase, ms);
    }

    pub(super) fn run_ended(&mut self, id: RunId, end: RunEnd) {
        let Some(run) = self.runs.remove(id) else {
            self.totals.stale_answers += 1;
            return;
        };
        let step = run.step;
        assert!(
            self.graph.step(step).state == State::Running,
            "BUG: a run ended whose step does not run"
        );
        let seconds = end
            .stop
            .saturating_sub(end.start)
            .clamp(0, i64::from(u32::MAX)) as u64;
        let now = self.now;
        self.jobsets
            .charge(self.graph.step(step).set, end.start, seconds, now.secs());
        if run.holds_slot {
            self.machines.vacate(run.machine, now);
        }
        self.spend(run.machine, (run.phase, now.since(run.phase_since)));
        self.machines.run_over(run.machine, id, now);
        self.jobsets.vacate(run.payer);

        let mut finish = FinishStep {
            run: id,
            status: BuildStatus::Aborted,
            message: None,
            start: end.start,
            stop: end.stop,
            overhead_ms: end.overhead_ms,
            times_built: 0,
            non_deterministic: false,
            has_log: end.has_log,
            keep_attempt_log: false,
            cache_failure: false,
            output: None,
        };
        let again = self.graph.is_wanted(step);
        let suspicion = self.suspect(&run, &end.outcome);
        match end.outcome {
            Outcome::Built {
                output,
                cached,
                times_built,
                non_deterministic,
            } => {
                self.machine_works(&run);
                finish.status = BuildStatus::Succeeded;
                finish.times_built = times_built;
                finish.non_deterministic = non_deterministic;
                finish.output = Some(output.clone());
                self.count_step(&run, &finish);
                self.record(Record::FinishStep(finish));
                self.release(step);
                let primary = (!cached).then_some(run.primary);
                self.succeed(step, output, primary, (end.start, end.stop));
            }
            Outcome::Failed {
                status,
                message,
                can_cache,
                times_built,
                non_deterministic,
            } => {
                self.note_end(&run, suspicion);
                finish.times_built = times_built;
                finish.non_deterministic = non_deterministic;
                if suspicion != Suspicion::OfTheStep {
                    // Final or not: nothing is known of the step yet, so nothing is remembered of its outputs.
                    let tries_max = self.settings.tries_max.min(TRIES_MAX);
                    self.try_again(&run, finish, status, message, suspicion, tries_max);
                    return;
                }
                self.count_step(&run, &finish);
                finish.status = failed_status(status);
                finish.cache_failure = can_cache;
                self.fail_run(&run, finish, message);
            }
            _ if run.evicted && again => {
                let order = self
                    .machines
                    .get(run.machine)
                    .and_then(|m| m.order.as_ref());
                let who = order.map_or("an operator", |order| &order.who);
                let name = self.machine_name(run.machine);
                let message =
                    format!("stopped: {who} disabled ‘{name}’; it goes to another machine");
                finish.message = row_message(finish.status, &message);
                finish.keep_attempt_log = true;
                self.record(Record::FinishStep(finish));
                self.note_trouble(step, Some(run.machine), &message);
                self.again(step);
            }
            // What breaks after we asked for the end broke because of it.
            _ if run.killed => {
                finish.status = BuildStatus::Cancelled;
                finish.keep_attempt_log = again;
                self.record(Record::FinishStep(finish));
                self.again(step);
            }
            Outcome::Cancelled => {
                finish.status = BuildStatus::Cancelled;
                finish.keep_attempt_log = again;
                self.record(Record::FinishStep(finish));
                self.again(step);
            }
            Outcome::Transient { status, message } => {
                self.note_end(&run, suspicion);
                let tries_max = self.settings.tries_max;
                self.try_again(&run, finish, status, message, suspicion, tries_max);
            }
            Outcome::MachineFault { message } => {
                finish.message = row_message(finish.status, &message);
                finish.keep_attempt_log = again;
                self.record(Record::FinishStep(finish));
                self.set_aside(run.machine, &message);
                self.note_trouble(step, Some(run.machine), &message);
                self.again(step);
            }
            Outcome::OurFault { message } => {
                let drv = self.graph.drv(step);
                let text = format!("cannot build ‘{drv}’ through a fault of this host: {message}");
                self.say(Level::Error, text);
                finish.message = row_message(finish.status, &message);
                finish.keep_attempt_log = again;
                self.record(Record::FinishStep(finish));
                if again {
                    self.note_trouble(step, None, &message);
                    let slot = self.graph.step_mut(step);
                    slot.put_off = slot.put_off.saturating_add(1);
                    let put_off = u32::from(slot.put_off);
                    let delay = growing_ms(&self.settings, put_off)
                        + jitter_ms(&self.settings, 10, &mut self.random);
                    self.defer(step, delay);
                } else {
                    self.free_step(step);
                }
            }
            Outcome::InputsGone { message, inputs } => {
                let drv = self.graph.drv(step);
                let text = format!(
                    "cannot build ‘{drv}’ now: {message}; its inputs are asked about again"
                );
                self.say(Level::Warn, text);
                finish.message = row_message(finish.status, &message);
                finish.keep_attempt_log = again;
                self.record(Record::FinishStep(finish));
                self.distrust(&inputs);
                if again {
                    let slot = self.graph.step_mut(step);
                    slot.put_off = slot.put_off.saturating_add(1);
                    // At once the first time; a store that says now this, now that, is not asked without a pause.
                    let delay = match slot.put_off {
                        1 => 0,
                        n => growing_ms(&self.settings, u32::from(n) - 1),
                    };
                    self.sleep(step, State::AskLater, delay);
                } else {
                    self.free_step(step);
                }
            }
            Outcome::Collected => {
                let message = format!(
                    "derivation ‘{}’ is not in the store any more: it was garbage-collected before it could be built",
                    self.graph.drv(step)
                );
                finish.message = row_message(finish.status, &message);
                self.record(Record::FinishStep(finish));
                self.fail_step(
                    step,
                    Cause::Abort {
                        message: message.into(),
                    },
                );
            }
        }
    }

    /// The builder ran to its end. Unless that looks like the machine's fault, it shows that the machine works.
    fn note_end(&mut self, run: &Run, suspicion: Suspicion) {
        match suspicion {
            Suspicion::OfTheStep => self.machine_works(run),
            Suspicion::OfTheMachine(_) => self.moves(),
        }
    }

    /// A failure that another try may cure; after so many it is final.
    fn try_again(
        &mut self,
        run: &Run,
        mut finish: FinishStep,
        status: BuildStatus,
        message: Box<str>,
        suspicion: Suspicion,
        tries_max: u32,
    ) {
        let step = run.step;
        let slot = self.graph.step_mut(step);
        slot.tries = slot.tries.saturating_add(1);
        let tries = u32::from(slot.tries);
        finish.status = failed_status(status);
        if tries >= tries_max.min(u32::from(u8::MAX)) || !self.graph.is_wanted(step) {
            self.count_step(run, &finish);
            self.fail_run(run, finish, message);
            return;
        }
        finish.message = row_message(finish.status, &message);
        finish.keep_attempt_log = true;
        self.record(Record::FinishStep(finish));
        self.totals.retries += 1;
        self.totals.tries_most = self.totals.tries_most.max(tries);
        let delay =
            growing_ms(&self.settings, tries) + jitter_ms(&self.settings, 10, &mut self.random);
        let (drv, name) = (self.graph.drv(step), self.machine_name(run.machine));
        let text = match suspicion {
            Suspicion::OfTheStep => {
                format!("possibly transient failure building ‘{drv}’ on ‘{name}’: {message}")
            }
            Suspicion::OfTheMachine(signature) => format!(
                "building ‘{drv}’ failed on ‘{name}’ as if the machine were broken ({}); another one is tried first: {message}",
                signature.words()
            ),
        };
        self.say(Level::Warn, text);
        self.note_trouble(step, Some(run.machine), &message);
        self.defer(step, delay);
        if suspicion != Suspicion::OfTheStep {
            self.seek_another(step, run.machine);
        }
    }

    /// A machine has had a fault and takes nothing for a while.
    pub(super) fn set_aside(&mut self, machine: u32, message: &str) {
        let now = self.now;
        let (times, aside) =
            self.machines
                .fault(machine, message, &self.settings, &mut self.random, now);
        for at in times {
            self.timers.push(Reverse((at, Timer::Machine(machine))));
        }
        if let Some(delay) = aside {
            let name = self.machine_name(machine);
            let text = format!(
                "will disable machine ‘{name}’ for {}s: {message}",
                delay / 1000
            );
            self.say(Level::Warn, text);
        }
    }

    fn machine_works(&mut self, run: &Run) {
        self.moves();
        self.machines.works(run.machine, self.now);
    }

    /// A step is done, for good or bad; an attempt that is made again is not counted (as in Hydra).
    fn count_step(&mut self, run: &Run, finish: &FinishStep) {
        let built_secs = finish.stop.saturating_sub(finish.start).max(0) as u64;
        let time = StepTime {
            steps: 1,
            built_ms: built_secs.saturating_mul(1000),
            copied_ms: u64::from(finish.overhead_ms),
        };
        self.totals.steps.add(time);
        if let Some(machine) = self.machines.machines[run.machine as usize].as_mut() {
            machine.steps.add(time);
        }
    }

    pub(super) fn machine_name(&self, machine: u32) -> &str {
        self.machines
            .get(machine)
            .map_or("?", |machine| &machine.spec.name)
    }

    fn fail_run(&mut self, run: &Run, mut finish: FinishStep, message: Box<str>) {
        let message = row_message(finish.status, &message);
        let failed = FailedRun {
            run: run.id,
            machine: MachineId(run.machine),
            primary: run.primary,
            status: finish.status,
            message: message.clone(),
            start: finish.start,
            stop: finish.stop,
        };
        finish.message = message;
        self.record(Record::FinishStep(finish));
        self.fail_step(run.step, Cause::Run(failed));
    }

    /// The attempt did not count: the step is runnable at once, if anybody wants it.
    fn again(&mut self, step: u32) {
        if self.graph.is_wanted(step) {
            self.set_state(step, State::Runnable);
        } else {
            self.free_step(step);
        }
    }

    fn defer(&mut self, step: u32, delay_ms: u64) {
        let text = format!(
            "will retry ‘{}’ after {}s",
            self.graph.drv(step),
            delay_ms / 1000
        );
        self.say(Level::Info, text);
        self.sleep(step, State::Deferred, delay_ms);
    }
}

/// The statuses a run can fail with; anything else would mean something else in a row.
fn failed_status(status: BuildStatus) -> BuildStatus {
    use BuildStatus::*;
    match status {
        Succeeded | DepFailed | FailedWithOutput | Cancelled | Resolved => Aborted,
        other => other,
    }
}

/// Hydra keeps the message only of aborted steps (7c7cc8c0); what else failed has a log.
fn row_message(status: BuildStatus, message: &str) -> Option<Box<str>> {
    (status == BuildStatus::Aborted && !message.is_empty()).then(|| message.into())
}
