//! THE CORE: every decision, no I/O. See [`event`] for what goes in and [`action`] for what comes out.
//!
//! One value, [`Plan`], holds the queue's whole graph. [`Plan::turn`] takes events and adds actions; it never
//! blocks or fails, reads no clock, and does a bounded amount of work: what is left over is kept in work lists
//! and done by later turns, which [`Plan::wake_at`] asks for. Equal events at equal times give equal actions.
//!
//! | file | knows |
//! |---|---|
//! | `graph` | steps, edges, who waits for whom |
//! | `builds`, `runs` | the tables of builds and of attempts |
//! | `shares` | jobsets, machine time used, sets of jobsets |
//! | `index` | the order of the runnable steps |
//! | `machines` | kinds, slots, who is set aside |
//! | `holds` | caps and emergencies: what may not start although a machine would take it |
//! | `orders` | what operators order about machines, for the log |
//! | `ahead` | what the next events are about, fetched from memory before its turn has come |
//! | `ingest` | from rows and facts to steps; which builds are gone |
//! | `attempt` | from a runnable step to a run, and what its end means |
//! | `follow` | what another queue runner does, when this one only watches |
//! | `fail` | failing, aborting and dropping what depends on a step |
//! | `explain`, `explanation` | counts, and why a build does not build |
//! | `listing` | steps one by one, for those who look |
//! | `signature` | what a broken machine makes builds say |
//! | `suspicion` | steps that fail as if their machine were broken |
//! | `standstill` | a queue that does not move says so |
//! | `invariants` | what must always hold |
//! | `oracle` | Hydra's order written down plainly, to test against |
//!
//! A step's life (`graph::State`): asked about, inspected; valid, or needed; blocked by its inputs, runnable,
//! running; valid, deferred for another try, or doomed with everything that waits for it.
//!
//! Two rules hold the two truths, memory and database, together. *Release on output, announce on commit*: what
//! waits for an output goes on in the turn that learns of it, and the rows follow as records with rising tickets.
//! And a build finished here is remembered until a list of the queue, read after that commit, lacks it.
//!
//! Deliberately absent: derivations (only class, inputs and dependents are kept), retries of database writes,
//! anything about connections. A cycle among derivations cannot be (their names are hashes of their inputs); fed
//! one, its steps would stay blocked until their builds are cancelled, and would keep their memory.

pub mod action;
mod ahead;
mod attempt;
mod builds;
pub mod event;
mod explain;
pub mod explanation;
mod fail;
pub mod follow;
mod graph;
pub mod holds;
mod index;
mod ingest;
mod invariants;
mod listing;
mod machines;
pub mod oracle;
mod orders;
mod runs;
mod shares;
pub mod signature;
pub mod simulation;
mod standstill;
mod suspicion;

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap, VecDeque};
use std::sync::Arc;

use self::action::{Action, Level, Record};
use self::ahead::Ahead;
use self::attempt::Starting;
use self::builds::Builds;
use self::event::{Event, Hold, OrderState, Pass, PlanSettings, QuestionId, StepFacts};
use self::fail::Failing;
use self::graph::{Graph, State, STATES};
use self::holds::Emergency;
use self::index::Index;
use self::ingest::{Questions, Sweep};
use self::machines::Machines;
use self::runs::Runs;
use self::shares::Jobsets;
use self::standstill::Standstill;
use self::suspicion::Elsewhere;
use crate::base::hash::FixedMap;
use crate::base::random::Random;
use crate::model::{Millis, Phase, RunId, Ticket};

pub use self::explain::{JobsetStatus, MachineStatus, Snapshot, SystemTypeStatus};
pub use self::listing::{StepList, StepStatus};
pub use self::machines::StepTime;
pub use self::standstill::{Stall, Wait};

/// Unsupported steps failed per turn.
const UNSUPPORTED_PER_TURN: usize = 1_000;
/// Steps whose last error is remembered.
const TROUBLES_MAX: usize = 10_000;
/// How much of it.
const TROUBLE_BYTES_MAX: usize = 2_000;

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Timer {
    /// A step's deferral ends.
    Step { step: u32, stamp: u32 },
    /// A machine is looked at again.
    Machine(u32),
    /// Steps of a class may have been unsupported for too long.
    Class(u32),
    /// An emergency may be over.
    Emergency,
    /// The queue may not have moved for too long.
    Standstill,
}

/// Milliseconds by phase, in the order of [`Phase::ALL`].
pub type PhaseMs = [u64; Phase::ALL.len()];

/// Numbers that only rise.
#[derive(Clone, Copy, Default)]
struct Totals {
    steps: StepTime,
    builds_done: u64,
    builds_succeeded: u64,
    builds_loaded: u64,
    steps_created: u64,
    steps_unsupported: u64,
    /// Milliseconds that runs have spent in each phase.
    phase_ms: PhaseMs,
    retries: u64,
    tries_most: u32,
    stale_answers: u64,
    outputs_substituted: u64,
}

/// The last thing that went wrong with a step.
struct Trouble {
    text: Box<str>,
    machine: Option<u32>,
    at: Millis,
}

/// Something keeps everything from being started.
struct Held {
    since: Millis,
    why: Box<str>,
}

/// The plan. See the module.
pub struct Plan {
    settings: PlanSettings,
    random: Random,
    /// When the plan began; steps count seconds from here.
    began: Millis,
    now: Millis,
    graph: Graph,
    builds: Builds,
    jobsets: Jobsets,
    index: Index,
    machines: Machines,
    runs: Runs,
    questions: Questions,
    /// Answers not digested yet.
    facts: VecDeque<(QuestionId, StepFacts)>,
    ahead: Ahead,
    failing: VecDeque<Failing>,
    /// Steps whose priorities, limits and jobsets have to be passed on to their dependencies.
    spread: VecDeque<u32>,
    /// Runnable steps whose key changed: out of the index until the end of the turn.
    rekey: Vec<u32>,
    /// Steps that perhaps nobody wants any more.
    unwanted: Vec<u32>,
    sweep: Option<Sweep>,
    /// Builds that go before everything else, by id.
    emergencies: Vec<Emergency>,
    timers: BinaryHeap<Reverse<(Millis, Timer)>>,
    /// When each class's timer is due.
    class_due: Vec<Millis>,
    /// Valid steps kept so that they are not asked about again: step, stamp, second. The oldest goes first.
    kept: VecDeque<(u32, u32, u32)>,
    /// Pages of the queue that have not been acknowledged.
    pages_owed: u32,
    last_ticket: Ticket,
    written: Ticket,
    /// The newest pass that has begun.
    pass: Pass,
    stopped: bool,
    /// Another queue runner starts steps; this plan only follows.
    following: bool,
    /// While there is one, nothing is started.
    holds: BTreeMap<Hold, Held>,
    /// By step; for explanations alone.
    troubles: FixedMap<u32, Trouble>,
    /// Deferred steps that another machine may have at once.
    elsewhere: Vec<Elsewhere>,
    /// There may be more to start.
    placing: bool,
    standstill: Standstill,
    /// Compare every start with the plain order.
    audited: bool,
    states: [u32; STATES],
    totals: Totals,
    out: Vec<Action>,
    /// Builds have left that asked for limits of steps which may still have to run: no step's limits are taken as they
    /// are. Back to false when the queue has been empty.
    limits_fall: bool,
    /// Kept for their memory: a step's inputs with whether they are new, and those it has to wait for.
    scratch: (Vec<(u32, bool)>, Vec<u32>),
    starting: Vec<Starting>,
    /// The same: steps that have become ready.
    ready: Vec<u32>,
}

impl Plan {
    /// An empty plan. `seed` steers the jitter of delays; `now` is the driver's clock.
    pub fn new(settings: PlanSettings, seed: u64, now: Millis) -> Plan {
        let mut jobsets = Jobsets::new(settings.share_window_secs);
        jobsets.set_caps(&settings.caps);
        jobsets.set_repeats(&settings.repeats);
        Plan {
            jobsets,
            settings,
            random: Random::new(seed),
            began: now,
            now,
            graph: Graph::new(),
            builds: Builds::default(),
            index: Index::default(),
            machines: Machines::default(),
            runs: Runs::default(),
            questions: Questions::default(),
            facts: VecDeque::new(),
            ahead: Ahead::default(),
            failing: VecDeque::new(),
            spread: VecDeque::new(),
            rekey: Vec::new(),
            unwanted: Vec::new(),
            sweep: None,
            emergencies: Vec::new(),
            timers: BinaryHeap::new(),
            class_due: Vec::new(),
            kept: VecDeque::new(),
            pages_owed: 0,
            last_ticket: Ticket(0),
            written: Ticket(0),
            pass: Pass(0),
            stopped: false,
            following: false,
            holds: BTreeMap::new(),
            troubles: FixedMap::default(),
            elsewhere: Vec::new(),
            placing: false,
            standstill: Standstill::default(),
            audited: false,
            states: [0; STATES],
            totals: Totals::default(),
            out: Vec::new(),
            limits_fall: false,
            scratch: Default::default(),
            starting: Vec::new(),
            ready: Vec::new(),
        }
    }

    /// Takes the events, in order, and adds what is to be done to `actions`, in order. A `now` earlier than the last
    /// one counts as the last one. The work is bounded by `settings.turn_budget` and the size of the events, except
    /// that the edges of one step are never split over turns.
    ///
    /// Events that are there together are better given together: what a turn begins and ends with is done once, and
    /// what they are about is fetched from memory at the same time.
    pub fn turn(&mut self, now: Millis, events: &mut Vec<Event>, actions: &mut Vec<Action>) {
        self.now = self.now.max(now);
        self.jobsets.prune(self.now.secs());
        self.fetch_for(events);
        for event in events.drain(..) {
            self.take(event);
        }
        self.ring();
        self.tell_orders();
        self.work();
        self.place();
        self.watch_standstill();
        self.acknowledge_pages();
        actions.append(&mut self.out);
    }

    /// When the plan wants the next [`Event::Tick`] if nothing else happens; not later than the last turn's time if
    /// work is left over.
    pub fn wake_at(&self) -> Option<Millis> {
        if self.has_backlog() {
            return Some(self.now);
        }
        self.timers
            .peek()
            .map(|Reverse((at, _))| (*at).max(self.now))
    }

    /// No run lives, nothing is unwritten, nothing is left to be done for past events.
    pub fn is_idle(&self) -> bool {
        self.runs.is_empty() && self.unwritten() == 0 && !self.has_backlog()
    }

    /// Runs started and not ended.
    pub fn live_runs(&self) -> usize {
        self.runs.len()
    }

    fn take(&mut self, event: Event) {
        match event {
            Event::Jobset {
                id,
                name,
                shares,
                history,
            } => {
                self.jobsets
                    .announce(id, name, shares, &history, self.now.secs());
            }
            Event::Shares { id, shares } => self.jobsets.set_shares(id, shares),
            Event::Builds { rows } => self.take_builds(rows),
            Event::SnapshotBegins { pass } => self.pass = self.pass.max(pass),
            Event::Snapshot {
                pass,
                written,
                builds,
                last,
            } => self.take_list(pass, written, builds, last),
            Event::Facts { answers } => self.facts.extend(answers),
            Event::Described { question, output } => self.described(question, output),
            Event::Machines {
                machines,
                loaded_from_file,
            } => {
                let grace_ms = self.settings.unsupported_grace_ms;
                self.machines.configure(
                    machines,
                    loaded_from_file,
                    &mut self.index.classes,
                    self.now,
                    grace_ms,
                );
                self.watch_classes();
                self.evict();
                self.watch_orders();
            }
            Event::RunPhase { run, phase } => self.run_phase(run, phase),
            Event::RunEnded { run, end } => self.run_ended(run, end),
            Event::Written { upto } => self.written = self.written.max(upto.min(self.last_ticket)),
            Event::Emergencies { builds } => self.take_emergencies(builds),
            Event::Settings(settings) => {
                self.jobsets.set_window(settings.share_window_secs);
                self.jobsets.set_caps(&settings.caps);
                self.jobsets.set_repeats(&settings.repeats);
                self.settings = settings;
                self.watch_classes();
            }
            Event::Orders { orders } => {
                self.machines.order(orders, self.now);
                self.evict();
                self.watch_orders();
            }
            Event::Hold { hold, why } => self.hold(hold, why),
            Event::Shortage { machine, why } => {
                if self.machines.set_short(machine.0, why.clone(), self.now) {
                    self.say_shortage(machine.0, why);
                }
            }
            Event::Stop => self.stopped = true,
            Event::Tick => {}
        }
    }

    /// Ends the runs on machines that are disabled, unless they are bringing their outputs already.
    fn evict(&mut self) {
        let disabled = |at: u32| {
            let order = self.machines.get(at).and_then(|m| m.order.as_ref());
            order.is_some_and(|order| order.state == OrderState::Disabled)
        };
        let runs = self.runs.all();
        let evicted = runs.filter(|run| run.holds_slot && !run.killed && disabled(run.machine));
        let mut evicted: Vec<RunId> = evicted.map(|run| run.id).collect();
        evicted.sort_unstable();
        for id in evicted {
            if let Some(run) = self.runs.find(id) {
                run.killed = true;
                run.evicted = true;
                self.out.push(Action::Kill { run: id });
            }
        }
    }

    /// Looks again when an order ends by itself.
    fn watch_orders(&mut self) {
        for machine in self.machines.machines.iter().flatten() {
            if let Some(until) = machine.order.as_ref().and_then(|order| order.until) {
                let at = Millis::from_secs(until.max(0) as u64);
                self.timers
                    .push(Reverse((at, Timer::Machine(machine.spec.id.0))));
            }
        }
    }

    /// Something that keeps everything from being started has come, is said again, or has gone.
    fn hold(&mut self, hold: Hold, why: Option<Box<str>>) {
        match why {
            Some(why) => {
                let since = self.holds.get(&hold).map_or(self.now, |held| held.since);
                self.holds.insert(hold, Held { since, why });
            }
            None => {
                self.holds.remove(&hold);
            }
        }
    }

    fn say_shortage(&mut self, machine: u32, why: Option<Box<str>>) {
        let name = self.machine_name(machine);
        match why {
            Some(why) => {
                let text = format!("nothing is started on ‘{name}’: {why}");
                self.say(Level::Warn, text);
            }
            None => {
                let text = format!("‘{name}’ has enough free space again: it takes steps");
                self.say(Level::Info, text);
            }
        }
    }

    /// Remembers what went wrong with a step until it is done with.
    fn note_trouble(&mut self, step: u32, machine: Option<u32>, text: &str) {
        if self.troubles.len() < TROUBLES_MAX || self.troubles.contains_key(&step) {
            let at = self.now;
            let text = crate::base::text::clip(text, TROUBLE_BYTES_MAX).into();
            self.troubles.insert(step, Trouble { text, machine, at });
        }
    }

    /// Does what is due by the clock.
    fn ring(&mut self) {
        while let Some(&Reverse((at, timer))) = self.timers.peek() {
            if at > self.now {
                break;
            }
            self.timers.pop();
            match timer {
                Timer::Step { step, stamp } => {
                    if self
                        .graph
                        .steps
                        .get(step as usize)
                        .is_some_and(|slot| slot.stamp == stamp)
                    {
                        match self.graph.step(step).state {
                            State::Deferred => self.set_state(step, State::Runnable),
                            State::AskLater => self.ask(step),
                            state => panic!("BUG: a timer for a step in state {state:?}"),
                        }
                    }
                }
                // Looked at in every turn.
                Timer::Emergency => {}
                // The end of the turn looks.
                Timer::Standstill => {}
                Timer::Machine(machine) => self.machines.ring(machine, self.now),
                Timer::Class(class) => {
                    if self.class_due.get(class as usize) == Some(&at) {
                        self.class_due[class as usize] = Millis::NEVER;
                        if self.fail_unsupported(class) {
                            break;
                        }
                    }
                }
            }
        }
    }

    /// Works off the lists until they are empty or the budget is spent.
    fn work(&mut self) {
        let mut left = i64::from(self.settings.turn_budget.max(1));
        loop {
            self.fail_on(&mut left);
            self.spread_on(&mut left);
            self.drop_unwanted(&mut left);
            if left <= 0 {
                break;
            }
            if let Some(cost) = self.take_next_facts() {
                left -= cost;
                continue;
            }
            self.sweep_on(&mut left);
            if self.failing.is_empty() && self.spread.is_empty() && self.unwanted.is_empty() {
                break;
            }
        }
        self.let_go_of_valid();
        self.ask_on();
        self.watch_emergencies();
        self.enter_rekeyed();
    }

    fn has_backlog(&self) -> bool {
        self.placing
            || !self.facts.is_empty()
            || !self.failing.is_empty()
            || !self.spread.is_empty()
            || !self.unwanted.is_empty()
            || self.sweep.is_some()
    }

    /// The one place where a step's state changes.
    fn set_state(&mut self, step: u32, to: State) {
        let slot = &mut self.graph.steps[step as usize];
        let from = slot.state;
        assert!(
            from.may_become(to),
            "BUG: a step changes from {from:?} to {to:?}"
        );
        self.totals.steps_created += u64::from(from == State::Free);
        slot.stamp = slot.stamp.wrapping_add(1);
        slot.state = to;
        let in_index = from == State::Runnable && !std::mem::take(&mut slot.rekey);
        if in_index {
            self.index.leave(step, &self.graph.steps, &self.jobsets);
        }
        if self.index.is_urgent(self.graph.step(step)) && from.waits() != to.waits() {
            let class = self.graph.step(step).class;
            let by = if to.waits() { 1 } else { u32::MAX };
            let class = &mut self.index.classes[class as usize];
            class.urgent_waiting = class.urgent_waiting.wrapping_add(by);
        }
        let slot = &mut self.graph.steps[step as usize];
        slot.since = (self.now.since(self.began) / 1000) as u32;
        if from == State::Running {
            let class = &mut self.index.classes[slot.class as usize];
            class.running -= 1;
            class.last_active = self.now;
        }
        if to == State::Running {
            self.index.classes[slot.class as usize].running += 1;
        }
        self.states[from as usize] =
            self.states[from as usize].wrapping_sub(u32::from(from != State::Free));
        self.states[to as usize] += u32::from(to != State::Free);
        if to == State::Runnable {
            self.index.enter(step, &self.graph.steps, &self.jobsets);
            self.watch_step(step);
        }
        if matches!(to, State::Free | State::Valid) && !self.troubles.is_empty() {
            self.troubles.remove(&step);
        }
    }

    /// Takes a runnable step out of the index before its key changes; it is back at the end of the turn.
    fn touch_key(&mut self, step: u32) {
        let slot = &mut self.graph.steps[step as usize];
        if slot.state == State::Runnable && !slot.rekey {
            slot.rekey = true;
            slot.stamp = slot.stamp.wrapping_add(1);
            self.index.leave(step, &self.graph.steps, &self.jobsets);
            self.rekey.push(step);
        }
    }

    fn enter_rekeyed(&mut self) {
        while let Some(step) = self.rekey.pop() {
            let slot = &mut self.graph.steps[step as usize];
            if slot.state == State::Runnable && std::mem::take(&mut slot.rekey) {
                self.index.enter(step, &self.graph.steps, &self.jobsets);
            }
        }
    }

    /// Gives a step's slot back. Whatever it waited for may be unwanted then. Returns the edges walked.
    fn free_step(&mut self, step: u32) -> i64 {
        let walked = self.graph.cut_deps(step, &mut self.unwanted);
        self.graph.cut_rdeps(step, |_, _| {
            panic!("BUG: freeing a step that somebody waits for")
        });
        self.set_state(step, State::Free);
        let slot = *self.graph.step(step);
        self.jobsets.release(slot.set);
        if let Some(class) = self.index.classes.get_mut(slot.class as usize) {
            class.steps -= 1;
        }
        self.graph.free(step);
        i64::from(walked) + 1
    }

    /// Puts a step off for `delay_ms`.
    fn sleep(&mut self, step: u32, state: State, delay_ms: u64) {
        self.set_state(step, state);
        let until = self.now + delay_ms.max(1);
        let slot = self.graph.step_mut(step);
        slot.aux = (until.since(self.began) / 1000) as u32;
        self.timers.push(Reverse((
            until,
            Timer::Step {
                step,
                stamp: slot.stamp,
            },
        )));
    }

    fn unwritten(&self) -> u64 {
        self.last_ticket.0 - self.written.0
    }

    fn writer_keeps_up(&self) -> bool {
        self.unwritten() <= self.settings.unwritten_tickets_max
    }

    fn next_ticket(&mut self) -> Ticket {
        self.last_ticket.0 += 1;
        self.last_ticket
    }

    fn record(&mut self, record: Record) -> Ticket {
        let ticket = self.next_ticket();
        self.out.push(Action::Record { ticket, record });
        ticket
    }

    fn say(&mut self, level: Level, text: String) {
        self.out.push(Action::Say {
            level,
            text: text.into(),
        });
    }

    fn drv(&self, step: u32) -> Arc<str> {
        self.graph.drv(step).into()
    }
}
