//! A real queue worked off in virtual time, to say when it would be done.
//!
//! The world around the plan is as good as it can be: every build succeeds after the time it usually takes, machines do
//! not fail, records are written at once, and nothing new is queued. What the plan does in it is what it would really
//! do: Hydra's order, shares, features, slots. Knows no store and no history; its caller answers for both.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap, VecDeque};
use std::sync::Arc;

use super::super::action::{Action, Record};
use super::super::event::{
    Event, MachineSpec, Outcome, PlanSettings, QuestionId, QueuedBuild, RunEnd, StepFacts,
};
use super::super::Plan;
use crate::base::hash::FixedMap;
use crate::model::{BuildId, BuildOutput, BuildStatus, MachineId, Millis, RunId, Ticket};

/// Rows in one event.
const PAGE: usize = 1_000;
/// The state of the system types is looked at whenever so much virtual time has passed.
const LOOK_EVERY_MS: u64 = 1_000;
/// A queue that is not done by then never is.
const HORIZON_MS: u64 = 10 * 365 * 24 * 3_600_000;

/// What is to be worked off.
#[derive(Clone, Debug)]
pub struct Queue {
    /// [`Event::Jobset`]s, each before its first build.
    pub jobsets: Vec<Event>,
    pub builds: Vec<QueuedBuild>,
    pub machines: Vec<MachineSpec>,
    pub settings: PlanSettings,
    /// The time at which the queue is as described.
    pub begin: Millis,
}

/// Answers questions about derivations.
pub type Facts<'a> = dyn FnMut(&[(QuestionId, Arc<str>)]) -> Vec<(QuestionId, StepFacts)> + 'a;
/// How many milliseconds a derivation takes on a machine.
pub type Takes<'a> = dyn FnMut(&str, MachineId) -> u64 + 'a;

/// How a build ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Ended {
    pub at: Millis,
    pub status: BuildStatus,
    /// Its outputs were there already.
    pub cached: bool,
}

#[derive(Clone, PartialEq, Debug, Default)]
pub struct SystemType {
    /// Steps waiting for a machine, times the seconds they waited.
    pub waited_secs: f64,
    /// Steps running, times the seconds they ran.
    pub busy_secs: f64,
    /// The most that waited at a time.
    pub waiting_max: u64,
}

#[derive(Clone, PartialEq, Debug, Default)]
pub struct MachineUse {
    pub runs: u64,
    pub busy_secs: f64,
}

/// See the module.
pub struct Forecast {
    plan: Plan,
    now: Millis,
    begin: Millis,
    looked: Millis,
    events: VecDeque<Event>,
    pages: VecDeque<Vec<QueuedBuild>>,
    pages_out: usize,
    ends: BinaryHeap<Reverse<(Millis, u64)>>,
    began: FixedMap<u64, Millis>,
    left: usize,
    output: Arc<BuildOutput>,
    pub builds: BTreeMap<BuildId, Ended>,
    pub system_types: BTreeMap<Box<str>, SystemType>,
    /// By the machines' ids.
    pub machines: BTreeMap<MachineId, MachineUse>,
    /// Derivations inspected, and attempts started.
    pub inspected: u64,
    pub started: u64,
}

impl Forecast {
    pub fn new(queue: Queue) -> Forecast {
        let mut events: VecDeque<Event> = queue.jobsets.into();
        events.push_front(Event::Machines {
            machines: queue.machines,
            loaded_from_file: true,
        });
        let pages = queue.builds.chunks(PAGE).map(<[_]>::to_vec).collect();
        // What no machine can do is known at once; it has nothing to wait for.
        let settings = PlanSettings {
            unsupported_ms_max: 0,
            ..queue.settings
        };
        Forecast {
            plan: Plan::new(settings, 0, queue.begin),
            now: queue.begin,
            begin: queue.begin,
            looked: queue.begin,
            events,
            pages,
            pages_out: 0,
            ends: BinaryHeap::new(),
            began: FixedMap::default(),
            left: queue.builds.len(),
            output: Arc::new(BuildOutput::default()),
            builds: BTreeMap::new(),
            system_types: BTreeMap::new(),
            machines: BTreeMap::new(),
            inspected: 0,
            started: 0,
        }
    }

    /// Lets some turns happen. False when the queue is done, or as far done as it will ever be.
    pub fn advance(&mut self, turns: u64, facts: &mut Facts, takes: &mut Takes) -> bool {
        let mut actions = Vec::new();
        for _ in 0..turns {
            if self.left == 0 || self.now.since(self.begin) > HORIZON_MS {
                return false;
            }
            let Some(event) = self.next_event() else {
                return false;
            };
            self.plan.turn(self.now, &mut vec![event], &mut actions);
            let mut questions = Vec::new();
            let mut written = Ticket(0);
            for action in actions.drain(..) {
                self.carry_out(action, &mut questions, &mut written, takes);
            }
            if !questions.is_empty() {
                self.inspected += questions.len() as u64;
                let answers = facts(&questions);
                self.events.push_back(Event::Facts { answers });
            }
            if written > Ticket(0) {
                self.events.push_back(Event::Written { upto: written });
            }
        }
        true
    }

    /// How far it is: builds ended.
    pub fn ended(&self) -> usize {
        self.builds.len()
    }

    /// Why a build never ends.
    pub fn why(&self, build: BuildId) -> Option<String> {
        self.plan.why(self.now, build)
    }

    fn next_event(&mut self) -> Option<Event> {
        if let Some(event) = self.events.pop_front() {
            return Some(event);
        }
        if self.pages_out == 0 {
            if let Some(rows) = self.pages.pop_front() {
                self.pages_out += 1;
                return Some(Event::Builds { rows });
            }
        }
        let end = self.ends.peek().map(|Reverse((at, _))| *at);
        let wake = self.plan.wake_at();
        match (end, wake) {
            (None, None) => None,
            (Some(end), wake) if wake.is_none_or(|wake| end <= wake) => {
                self.go_to(end);
                let Reverse((_, run)) = self.ends.pop()?;
                let began = self.began.remove(&run).unwrap_or(end);
                Some(Event::RunEnded {
                    run: RunId(run),
                    end: RunEnd {
                        outcome: Outcome::Built {
                            output: self.output.clone(),
                            cached: false,
                            times_built: 1,
                            non_deterministic: false,
                        },
                        start: began.secs(),
                        stop: end.secs(),
                        overhead_ms: 0,
                        has_log: false,
                    },
                })
            }
            (_, Some(wake)) => {
                self.go_to(wake);
                Some(Event::Tick)
            }
            (Some(_), None) => unreachable!("BUG: an end without a wish to be woken comes first"),
        }
    }

    /// Time passes; what waits and runs meanwhile is noted.
    fn go_to(&mut self, at: Millis) {
        if at.since(self.looked) >= LOOK_EVERY_MS {
            let secs = at.since(self.looked) as f64 / 1000.0;
            for system_type in self.plan.snapshot(self.now).system_types {
                let entry = self.system_types.entry(system_type.name).or_default();
                entry.waited_secs += system_type.runnable as f64 * secs;
                entry.busy_secs += system_type.running as f64 * secs;
                entry.waiting_max = entry.waiting_max.max(system_type.runnable);
            }
            self.looked = at;
        }
        self.now = self.now.max(at);
    }

    fn carry_out(
        &mut self,
        action: Action,
        questions: &mut Vec<(QuestionId, Arc<str>)>,
        written: &mut Ticket,
        takes: &mut Takes,
    ) {
        match action {
            Action::Inspect { question, drv } => questions.push((question, drv)),
            Action::Describe { question, .. } => self.events.push_back(Event::Described {
                question,
                output: Ok(self.output.clone()),
            }),
            Action::PageTaken => self.pages_out = self.pages_out.saturating_sub(1),
            Action::Start(start) => {
                let takes_ms = takes(&start.drv, start.machine);
                self.ends.push(Reverse((self.now + takes_ms, start.run.0)));
                self.began.insert(start.run.0, self.now);
                self.started += 1;
                let machine = self.machines.entry(start.machine).or_default();
                machine.runs += 1;
                machine.busy_secs += takes_ms as f64 / 1000.0;
                *written = start.ticket.max(*written);
            }
            Action::Record { ticket, record } => {
                *written = ticket.max(*written);
                match record {
                    Record::Succeed(succeed) => {
                        for (build, cached) in succeed.builds {
                            self.end(build, BuildStatus::Succeeded, cached);
                        }
                    }
                    Record::Fail(fail) => {
                        for build in fail.builds {
                            self.end(build.id, build.status, fail.cached);
                        }
                    }
                    Record::Abort { builds, .. } => {
                        for build in builds {
                            self.end(build, BuildStatus::Aborted, false);
                        }
                    }
                    _ => {}
                }
            }
            // Every row is given unasked; what is said is said by the real one.
            _ => {}
        }
    }

    fn end(&mut self, build: BuildId, status: BuildStatus, cached: bool) {
        let ended = Ended {
            at: self.now,
            status,
            cached,
        };
        if self.builds.insert(build, ended).is_none() {
            self.left = self.left.saturating_sub(1);
        }
    }
}
