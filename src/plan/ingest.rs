//! From rows of the queue and facts about derivations to steps; and which builds are gone.
//!
//! Does not start, end or fail anything itself.

use std::collections::VecDeque;
use std::sync::Arc;

use super::action::{Action, Level, Record, Succeed};
use super::builds::{Build, BuildState};
use super::event::{Pass, QuestionId, QueuedBuild, StepFacts, StepSpec};
use super::fail::{Cause, BUILDS_PER_RECORD};
use super::graph::{State, NONE};
use super::index::URGENT;
use super::machines::growing_ms;
use super::Plan;
use crate::base::hash::FixedMap;
use crate::base::interner::Guess;
use crate::model::{BuildId, BuildOutput, Millis, Ticket, UnixSecs};

/// Above that only emergencies are.
const PRIORITY_MAX: i32 = URGENT - 1;
/// Ids in one request for rows.
const BUILDS_PER_REQUEST: usize = 1_000;
/// A row asked for and still not seen is asked for again after this time.
const ASK_AGAIN_MS: u64 = 120_000;
/// A step that could not be judged yet is asked about again after this time.
const ASK_LATER_MS: u64 = 5_000;
/// Questions whose memory is fetched together.
const QUESTIONS_TOGETHER: usize = 32;
/// Valid steps kept, and for how long (Hydra keeps them for one pass over the queue).
const VALID_KEPT_MAX: usize = 100_000;
const VALID_KEPT_SECS: u32 = 600;
/// Kept steps let go per turn, and together: fewer are kept longer.
const VALID_LET_GO: usize = 2_048;
const VALID_BLOCK: usize = 64;

/// Questions under way, and those waiting to be asked.
#[derive(Default)]
pub struct Questions {
    last: u64,
    /// By question: the step and its stamp when it was asked.
    under_way: FixedMap<u64, (u32, u32)>,
    /// Steps to ask about, with their stamp; those of bumped builds first.
    urgent: VecDeque<(u32, u32)>,
    waiting: VecDeque<(u32, u32)>,
}

impl Questions {
    pub fn under_way(&self) -> usize {
        self.under_way.len()
    }

    /// The step that a question under way is about.
    pub fn step_of(&self, question: QuestionId) -> Option<u32> {
        self.under_way.get(&question.0).map(|&(step, _)| step)
    }

    /// The steps that wait to be asked about.
    pub fn next(&self) -> impl Iterator<Item = u32> + '_ {
        let next = self.urgent.iter().chain(&self.waiting);
        next.map(|&(step, _)| step)
    }

    pub fn waiting(&self) -> usize {
        self.urgent.len() + self.waiting.len()
    }
}

/// A walk over all builds after a complete list of the queue.
pub struct Sweep {
    pass: Pass,
    written: Ticket,
    next: u32,
}

/// What builds ask of the steps they want; passed down from a step to its dependencies.
#[derive(Clone, Copy)]
struct Wishes {
    global: i32,
    local: i32,
    lowest: i32,
    max_silent: u32,
    timeout: u32,
    set: u32,
    /// An emergency wants it.
    urgent: bool,
}

/// No limit (0) is more than any limit.
pub fn limit(secs: u32) -> u32 {
    secs.wrapping_sub(1)
}

/// Back to seconds, with 0 for no limit.
pub fn limit_secs(limit: u32) -> u32 {
    limit.wrapping_add(1)
}

impl Plan {
    pub(super) fn take_builds(&mut self, rows: Vec<QueuedBuild>) {
        self.pages_owed += 1;
        let was_empty = self.builds.queued == 0 && self.runs.is_empty();
        if was_empty && self.failing.is_empty() && self.unwanted.is_empty() {
            self.limits_fall = false;
        }
        for row in rows {
            let known = self.builds.find(row.id);
            match known.map(|slot| self.builds.get(slot).state) {
                Some(BuildState::Queued) => {
                    self.raise_priority(known.unwrap_or(NONE), row.global_priority)
                }
                // An older page; the list of a later pass decides.
                Some(BuildState::Finished(_)) => {}
                Some(BuildState::Asked(_)) => {
                    let slot = known.unwrap_or(NONE);
                    let seen = self.builds.get(slot).seen;
                    self.builds.remove(slot);
                    self.add_build(row, seen);
                }
                Some(BuildState::Free) => panic!("BUG: a known build's slot is free"),
                None => self.add_build(row, Pass(0)),
            }
        }
    }

    fn add_build(&mut self, row: QueuedBuild, seen: Pass) {
        self.totals.builds_loaded += 1;
        let mut build = Build {
            id: row.id,
            state: BuildState::Queued,
            jobset: self.jobsets.number(row.jobset),
            step: NONE,
            next: NONE,
            max_silent: row.max_silent_secs,
            timeout: row.timeout_secs,
            global: row.global_priority.min(PRIORITY_MAX),
            local: row.local_priority,
            since: self.pass,
            seen,
        };
        let Some((step, new)) = self.graph.intern(&row.drv) else {
            let message = "the derivation's path is too long to be a store path".into();
            let drv = row.drv.chars().take(200).collect::<String>().into();
            let record = Record::Abort {
                builds: vec![row.id],
                drv,
                message,
                at: self.now.secs(),
            };
            build.state = BuildState::Finished(self.record(record));
            self.builds.add(build);
            return;
        };
        build.step = step;
        let slot = self.builds.add(build);
        self.builds.attach(slot, &mut self.graph);
        self.wish_for(slot);
        if new {
            self.ask(step);
        } else if self.graph.step(step).state == State::Valid {
            self.describe(step);
        }
    }

    /// Gives a build's wishes to its step.
    pub(super) fn wish_for(&mut self, slot: u32) {
        let build = *self.builds.get(slot);
        let set = self.jobsets.single(build.jobset);
        let wishes = Wishes {
            global: build.global,
            local: build.local,
            lowest: build.id.0,
            max_silent: limit(build.max_silent),
            timeout: limit(build.timeout),
            set,
            urgent: self.is_emergency(build.id),
        };
        self.merge(build.step, wishes);
        self.jobsets.release(set);
    }

    fn raise_priority(&mut self, slot: u32, global: i32) {
        let global = global.min(PRIORITY_MAX);
        let build = self.builds.get_mut(slot);
        if build.global < global {
            build.global = global;
            let text = format!("priority of build {} increased", build.id);
            self.say(Level::Info, text);
            self.wish_for(slot);
        }
    }

    /// Adds wishes to a step. Priorities only rise, the lowest id only falls, sets and limits only grow (as in Hydra).
    fn merge(&mut self, step: u32, wishes: Wishes) {
        let slot = self.graph.step(step);
        let union = self.jobsets.union(slot.set, wishes.set);
        let becomes_urgent = wishes.urgent && !self.index.is_urgent(slot);
        let key_changes = becomes_urgent
            || wishes.global > slot.global
            || wishes.local > slot.local
            || wishes.lowest < slot.lowest
            || union.is_some();
        if !key_changes && wishes.max_silent <= slot.max_silent && wishes.timeout <= slot.timeout {
            return;
        }
        if key_changes {
            self.touch_key(step);
        }
        let slot = self.graph.step_mut(step);
        if becomes_urgent {
            slot.emergency = self.index.emergency;
            if slot.state.waits() {
                self.index.classes[slot.class as usize].urgent_waiting += 1;
            }
        }
        slot.global = slot.global.max(wishes.global);
        slot.local = slot.local.max(wishes.local);
        slot.lowest = slot.lowest.min(wishes.lowest);
        slot.max_silent = slot.max_silent.max(wishes.max_silent);
        slot.timeout = slot.timeout.max(wishes.timeout);
        if let Some(set) = union {
            let old = std::mem::replace(&mut slot.set, set);
            self.jobsets.release(old);
        }
        let slot = self.graph.step_mut(step);
        if slot.missing > 0 && !slot.spreading {
            slot.spreading = true;
            self.spread.push_back(step);
        }
    }

    fn wishes_of(&self, step: u32) -> Wishes {
        let slot = self.graph.step(step);
        Wishes {
            global: slot.global,
            local: slot.local,
            lowest: slot.lowest,
            max_silent: slot.max_silent,
            timeout: slot.timeout,
            set: slot.set,
            urgent: self.index.is_urgent(slot),
        }
    }

    /// Passes wishes on, level by level; stops where nothing changes.
    pub(super) fn spread_on(&mut self, left: &mut i64) {
        while *left > 0 {
            let Some(step) = self.spread.pop_front() else {
                return;
            };
            // Not flagged: freed since.
            if !std::mem::take(&mut self.graph.step_mut(step).spreading) {
                continue;
            }
            let wishes = self.wishes_of(step);
            for at in 0..self.graph.deps_len(step) {
                if let Some(dep) = self.graph.dep_at(step, at) {
                    self.merge(dep, wishes);
                }
                *left -= 1;
            }
            *left -= 1;
        }
    }

    /// Part of the list of all unfinished builds.
    pub(super) fn take_list(
        &mut self,
        pass: Pass,
        written: Ticket,
        listed: Vec<(BuildId, i32)>,
        last: bool,
    ) {
        if pass < self.pass {
            return;
        }
        self.pass = pass;
        let mut ask = Vec::new();
        for (id, global) in listed {
            let Some(slot) = self.builds.find(id) else {
                let asked = Build {
                    id,
                    state: BuildState::Asked(self.now),
                    jobset: 0,
                    step: NONE,
                    next: NONE,
                    max_silent: 0,
                    timeout: 0,
                    global,
                    local: 0,
                    since: pass,
                    seen: pass,
                };
                self.builds.add(asked);
                ask.push(id);
                continue;
            };
            self.builds.get_mut(slot).seen = pass;
            match self.builds.get(slot).state {
                BuildState::Queued => self.raise_priority(slot, global),
                BuildState::Asked(at) => {
                    if self.now.since(at) >= ASK_AGAIN_MS {
                        self.builds.set_state(slot, BuildState::Asked(self.now));
                        ask.push(id);
                    }
                }
                // The list is older than our commit.
                BuildState::Finished(ticket) if ticket > written => {}
                // Restarted.
                BuildState::Finished(_) => {
                    self.builds.set_state(slot, BuildState::Asked(self.now));
                    ask.push(id);
                }
                BuildState::Free => panic!("BUG: a known build's slot is free"),
            }
        }
        for builds in ask.chunks(BUILDS_PER_REQUEST) {
            self.out.push(Action::ReadBuilds {
                builds: builds.to_vec(),
            });
        }
        if last {
            // An unfinished walk for an older list is not missed: what it would have found is not in this list either.
            self.sweep = Some(Sweep {
                pass,
                written,
                next: 0,
            });
        }
    }

    /// Forgets builds that the last complete list lacks.
    pub(super) fn sweep_on(&mut self, left: &mut i64) {
        let Some(mut sweep) = self.sweep.take() else {
            return;
        };
        while *left > 0 {
            let slot = sweep.next;
            let Some(build) = self.builds.slots.get(slot as usize) else {
                return;
            };
            sweep.next += 1;
            *left -= 1;
            if build.seen >= sweep.pass {
                continue;
            }
            match build.state {
                BuildState::Free => {}
                BuildState::Queued | BuildState::Asked(_) if build.since >= sweep.pass => {}
                BuildState::Queued => {
                    let (id, step) = (build.id, build.step);
                    self.say(Level::Info, format!("discarding cancelled build {id}"));
                    self.limits_fall = true;
                    self.builds.detach(slot, &mut self.graph);
                    self.builds.set_state(slot, BuildState::Finished(Ticket(0)));
                    self.builds.remove(slot);
                    if !self.graph.is_wanted(step) {
                        self.unwanted.push(step);
                    }
                }
                BuildState::Asked(_) => self.builds.remove(slot),
                BuildState::Finished(ticket) => {
                    if ticket <= sweep.written {
                        self.builds.remove(slot);
                    }
                }
            }
        }
        self.sweep = Some(sweep);
    }

    /// Has the world asked about a step.
    pub(super) fn ask(&mut self, step: u32) {
        self.set_state(step, State::Asking);
        self.enqueue(step);
    }

    /// Asks for the description of a valid step's outputs, unless that is done already.
    fn describe(&mut self, step: u32) {
        let slot = self.graph.step_mut(step);
        if !slot.describing {
            slot.describing = true;
            self.enqueue(step);
        }
    }

    fn enqueue(&mut self, step: u32) {
        let slot = self.graph.step(step);
        let queue = if slot.global > 0 {
            &mut self.questions.urgent
        } else {
            &mut self.questions.waiting
        };
        queue.push_back((step, slot.stamp));
    }

    /// Asks as many questions as may be under way.
    pub(super) fn ask_on(&mut self) {
        for asked in 0.. {
            if self.questions.under_way.len() >= self.settings.questions_max.max(1) as usize {
                return;
            }
            if asked % QUESTIONS_TOGETHER == 0 {
                self.fetch_questions(QUESTIONS_TOGETHER);
            }
            let questions = &mut self.questions;
            let Some((step, stamp)) = questions
                .urgent
                .pop_front()
                .or_else(|| questions.waiting.pop_front())
            else {
                return;
            };
            if self.graph.step(step).stamp != stamp {
                continue;
            }
            questions.last += 1;
            let question = QuestionId(questions.last);
            let drv = self.drv(step);
            match self.graph.step(step).state {
                State::Asking => {
                    self.set_state(step, State::Inspecting);
                    self.out.push(Action::Inspect { question, drv });
                }
                State::Valid => self.out.push(Action::Describe { question, drv }),
                state => panic!("BUG: a question about a step in state {state:?}"),
            }
            self.questions
                .under_way
                .insert(question.0, (step, self.graph.step(step).stamp));
        }
    }

    /// The step that a question was about, if it is still in the state it was asked in.
    fn answered(&mut self, question: QuestionId) -> Option<u32> {
        let asked = self.questions.under_way.remove(&question.0);
        match asked {
            Some((step, stamp)) if self.graph.step(step).stamp == stamp => Some(step),
            _ => {
                self.totals.stale_answers += 1;
                None
            }
        }
    }

    /// Digests one answer; returns what it cost. `guesses`: of its inputs.
    pub(super) fn take_facts(
        &mut self,
        question: QuestionId,
        facts: StepFacts,
        guesses: &[Guess],
    ) -> i64 {
        let Some(step) = self.answered(question) else {
            return 1;
        };
        if self.graph.step(step).state != State::Inspecting {
            // An answer of the wrong kind. The step still waits for its description: ask anew.
            self.totals.stale_answers += 1;
            self.graph.step_mut(step).describing = false;
            self.describe(step);
            return 1;
        }
        match facts {
            StepFacts::Needed(spec) => self.needed(step, &spec, guesses),
            StepFacts::Valid => self.valid(step),
            StepFacts::Substituted { outputs } => {
                self.totals.outputs_substituted += outputs.len() as u64;
                // Without a build that wants it there is nothing to hang a row on.
                if let Some(build) = self.lowest_dependent(step) {
                    let drv = self.drv(step);
                    self.record(Record::Substitute {
                        build,
                        drv,
                        outputs,
                    });
                }
                self.valid(step)
            }
            StepFacts::Later => {
                self.sleep(step, State::AskLater, ASK_LATER_MS);
                1
            }
            StepFacts::FailedBefore => {
                self.fail_step(step, Cause::FailedBefore);
                1
            }
            StepFacts::Collected => {
                let message = format!(
                    "derivation ‘{}’ is not in the store any more: it was garbage-collected before it could be built",
                    self.graph.drv(step)
                );
                self.fail_step(
                    step,
                    Cause::Abort {
                        message: message.into(),
                    },
                );
                1
            }
            StepFacts::Unreadable { message } => {
                self.fail_step(step, Cause::Abort { message });
                1
            }
        }
    }

    fn needed(&mut self, step: u32, spec: &StepSpec, guesses: &[Guess]) -> i64 {
        let (class, new) = self
            .index
            .class_of(spec, &mut self.machines.kinds, self.now);
        if new {
            self.machines.cover();
            self.class_due
                .resize(self.index.classes.len(), Millis::NEVER);
            self.class_due[class as usize] = Millis::NEVER;
        }
        self.index.classes[class as usize].steps += 1;
        let slot = self.graph.step_mut(step);
        let old = std::mem::replace(&mut slot.class, class);
        if let Some(old) = self.index.classes.get_mut(old as usize) {
            old.steps -= 1;
        }
        let wishes = self.wishes_of(step);
        let (mut found, mut inputs) = std::mem::take(&mut self.scratch);
        let too_long = self.graph.intern_all(&spec.inputs, guesses, &mut found);
        inputs.clear();
        for &(input, new) in &found {
            if new || (input != step && self.graph.step(input).state != State::Valid) {
                self.touch_key(input);
                inputs.push(input);
            }
        }
        self.graph.link(step, &inputs);
        for &input in &inputs {
            self.merge(input, wishes);
        }
        // Asked for only now that its priority is known.
        for &(input, _) in found.iter().filter(|(_, new)| *new) {
            self.ask(input);
        }
        self.scratch = (found, inputs);
        if too_long {
            let drv = self.graph.drv(step);
            let message = format!(
                "derivation ‘{drv}’ has an input whose path is too long to be a store path"
            );
            self.fail_step(
                step,
                Cause::Abort {
                    message: message.into(),
                },
            );
            return 1;
        }
        let state = if self.graph.step(step).missing == 0 {
            State::Runnable
        } else {
            State::Blocked
        };
        self.set_state(step, state);
        spec.inputs.len() as i64 + 1
    }

    /// A step's outputs are found valid.
    fn valid(&mut self, step: u32) -> i64 {
        let walked = self.release(step);
        if self.graph.step(step).builds != NONE {
            self.describe(step);
        }
        walked
    }

    /// A step is valid: whatever waits for it goes on. Returns what it cost.
    pub(super) fn release(&mut self, step: u32) -> i64 {
        self.set_state(step, State::Valid);
        let mut ready = std::mem::take(&mut self.ready);
        let walked = self.graph.cut_rdeps(step, |dependent, number| {
            if dependent.missing == 0 && dependent.state == State::Blocked {
                ready.push(number);
            }
        });
        for dependent in ready.drain(..) {
            // Only edges to what is done are left.
            self.graph.drop_done_deps(dependent);
            self.set_state(dependent, State::Runnable);
        }
        self.ready = ready;
        self.keep_valid(step);
        i64::from(walked) + 1
    }

    /// Steps believed to be valid are not any more: their dependents' next question finds them anew.
    pub(super) fn distrust(&mut self, drvs: &[Box<str>]) {
        for drv in drvs {
            let Some(step) = self.graph.names.find(drv) else {
                continue;
            };
            if self.graph.step(step).state != State::Valid {
                continue;
            }
            self.limits_fall = true;
            if self.graph.step(step).builds == NONE {
                self.free_step(step);
            } else {
                self.graph.step_mut(step).describing = false;
                self.sleep(step, State::AskLater, 0);
            }
        }
    }

    fn keep_valid(&mut self, step: u32) {
        let slot = self.graph.step_mut(step);
        slot.tries = 0;
        slot.put_off = 0;
        let entry = (step, slot.stamp, (self.now.since(self.began) / 1000) as u32);
        self.kept.push_back(entry);
    }

    /// Frees valid steps that have been kept long enough; many at a time, since that costs little more than one.
    pub(super) fn let_go_of_valid(&mut self) {
        let now = (self.now.since(self.began) / 1000) as u32;
        for _ in 0..VALID_LET_GO / VALID_BLOCK {
            let Some(&(_, _, at)) = self.kept.get(VALID_BLOCK - 1) else {
                return;
            };
            let too_many = self.kept.len() >= VALID_KEPT_MAX + VALID_BLOCK;
            if !too_many && now.saturating_sub(at) < VALID_KEPT_SECS {
                return;
            }
            // One with builds is kept anew when they are done.
            let mut steps = std::mem::take(&mut self.scratch.1);
            steps.clear();
            for (step, stamp, _) in self.kept.drain(..VALID_BLOCK) {
                let slot = self.graph.step(step);
                if slot.stamp == stamp && slot.builds == NONE {
                    steps.push(step);
                }
            }
            steps.sort_unstable();
            steps.dedup();
            self.graph.fetch_all(&steps);
            for &step in &steps {
                self.free_step(step);
            }
            self.scratch.1 = steps;
        }
    }

    pub(super) fn described(
        &mut self,
        question: QuestionId,
        output: Result<Arc<BuildOutput>, Box<str>>,
    ) {
        let Some(step) = self.answered(question) else {
            return;
        };
        if self.graph.step(step).state != State::Valid {
            // An answer of the wrong kind: ask anew.
            self.totals.stale_answers += 1;
            self.enqueue_inspected(step);
            return;
        }
        self.graph.step_mut(step).describing = false;
        match output {
            Ok(output) => {
                let now = self.now.secs();
                self.succeed(step, output, None, (now, now));
                self.keep_valid(step);
            }
            Err(message) => {
                if self.graph.step(step).builds == NONE {
                    self.keep_valid(step);
                    return;
                }
                // Perhaps the outputs are not there any more: inspect it again, not only describe it.
                let slot = self.graph.step_mut(step);
                slot.put_off = slot.put_off.saturating_add(1);
                let put_off = u32::from(slot.put_off);
                let delay = growing_ms(&self.settings, put_off);
                let drv = self.graph.drv(step);
                let text = format!(
                    "cannot describe the outputs of ‘{drv}’: {message}; will ask again after {}s",
                    delay / 1000
                );
                self.say(Level::Warn, text);
                self.sleep(step, State::AskLater, delay);
            }
        }
    }

    /// Asks again about a step that is being inspected.
    fn enqueue_inspected(&mut self, step: u32) {
        self.questions.last += 1;
        let question = QuestionId(self.questions.last);
        let drv = self.drv(step);
        self.out.push(Action::Inspect { question, drv });
        self.questions
            .under_way
            .insert(question.0, (step, self.graph.step(step).stamp));
    }

    /// All builds of a valid step succeed. `primary` is the one that was built, the others found it there.
    pub(super) fn succeed(
        &mut self,
        step: u32,
        output: Arc<BuildOutput>,
        primary: Option<BuildId>,
        (start, stop): (UnixSecs, UnixSecs),
    ) {
        let builds = self.builds.detach_all(step, &mut self.graph);
        for builds in builds.chunks(BUILDS_PER_RECORD) {
            let ids = builds
                .iter()
                .map(|&(id, _)| (id, Some(id) != primary))
                .collect();
            let ticket = self.record(Record::Succeed(Succeed {
                builds: ids,
                output: output.clone(),
                start,
                stop,
            }));
            for &(_, slot) in builds {
                self.builds.set_state(slot, BuildState::Finished(ticket));
            }
        }
        self.totals.builds_done += builds.len() as u64;
        if !output.failed {
            self.totals.builds_succeeded += builds.len() as u64;
        }
    }

    /// Tells the monitor that it may send more, when what it sent has been digested.
    pub(super) fn acknowledge_pages(&mut self) {
        let few = self.questions.under_way() * 2 < self.settings.questions_max as usize;
        let idle = self.questions.under_way() == 0;
        if (few || idle)
            && self.questions.waiting() == 0
            && self.facts.is_empty()
            && self.writer_keeps_up()
        {
            for _ in 0..std::mem::take(&mut self.pages_owed) {
                self.out.push(Action::PageTaken);
            }
        }
    }
}
