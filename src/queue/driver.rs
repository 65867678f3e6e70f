//! The plan's thread: gives it events, carries its actions out. Never waits for anybody but the inbox.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Instant;

use crossbeam_channel::{Receiver, RecvTimeoutError, Sender};

use super::inspect::Question;
use super::{monitor, Context};
use crate::db::writer::{Body, Entry, Message};
use crate::model::Millis;
use crate::plan::action::{Action, Level};
use crate::plan::event::{Event, Outcome, QuestionId, RunEnd, EVENTS_PER_TURN, ITEMS_PER_TURN};
use crate::plan::explanation::{Explanation, MachineExplanation, Subject};
use crate::plan::Plan;
use crate::sys::clock::{unix_now, PlanClock};
use crate::sys::heartbeat;

/// Messages taken before questions are handed out.
const MESSAGES_PER_ROUND: usize = 256;
/// Derivations in one batch for an inspector.
const BATCH: usize = 256;

/// A look at the plan, with its time.
pub type Look = Box<dyn FnOnce(&Plan, Millis) + Send>;

/// What comes into the plan's inbox.
pub enum Inbox {
    Event(Event),
    /// Why something is not building.
    Explain(Subject, Sender<Option<Explanation>>),
    /// How each machine is.
    Machines(Sender<Vec<MachineExplanation>>),
    /// Somebody wants to know something of the plan: to be called with it and its time, and to be quick.
    Look(Look),
    /// Are all runs over and all records written?
    Idle(Sender<bool>),
    Leave,
}

/// Where actions go.
pub struct Ways {
    pub context: Arc<Context>,
    pub questions: Sender<Question>,
    pub monitor: Sender<monitor::Message>,
}

/// The body of the plan's thread.
pub fn drive(plan: Plan, clock: PlanClock, inbox: &Receiver<Inbox>, ways: &Ways) {
    let mut driver = Driver {
        plan,
        clock,
        ways,
        events: Vec::new(),
        items: 0,
        actions: Vec::new(),
        batch: Vec::new(),
        records: Vec::new(),
        own: VecDeque::new(),
    };
    let turns = &ways.context.meters.plan;
    let mut done = Instant::now();
    loop {
        heartbeat::idle("waiting for events");
        let message = match driver
            .plan
            .wake_at()
            .and_then(|at| driver.clock.instant(at))
        {
            Some(at) => inbox.recv_deadline(at),
            None => inbox.recv().map_err(|_| RecvTimeoutError::Disconnected),
        };
        heartbeat::busy("taking turns");
        let woken = turns.woken(done);
        let mut next = match message {
            Ok(message) => Some(message),
            Err(RecvTimeoutError::Timeout) => Some(Inbox::Event(Event::Tick)),
            Err(RecvTimeoutError::Disconnected) => return,
        };
        let mut taken = 0;
        while let Some(message) = next.take() {
            if !driver.take(message) {
                return;
            }
            taken += 1;
            if taken < MESSAGES_PER_ROUND {
                next = inbox.try_recv().ok();
            }
        }
        driver.turn();
        if !driver.batch.is_empty() {
            hand_out(&mut driver.batch, &ways.questions);
        }
        done = turns.done(woken);
    }
}

struct Driver<'a> {
    plan: Plan,
    clock: PlanClock,
    ways: &'a Ways,
    /// Those of the next turn, and how much they bring.
    events: Vec<Event>,
    items: usize,
    actions: Vec<Action>,
    batch: Vec<(QuestionId, Arc<str>)>,
    records: Vec<Entry>,
    /// Events this thread makes itself: it must never wait for its own inbox.
    own: VecDeque<Event>,
}

impl Driver<'_> {
    /// Takes a message; what is waiting comes together into one turn. False: leave.
    fn take(&mut self, message: Inbox) -> bool {
        match message {
            Inbox::Event(event) => {
                self.items += event.items();
                self.events.push(event);
                if self.events.len() >= EVENTS_PER_TURN || self.items >= ITEMS_PER_TURN {
                    self.turn();
                }
                return true;
            }
            Inbox::Leave => return false,
            _ => self.turn(),
        }
        let now = self.clock.now();
        // Whoever asked may have given up.
        match message {
            Inbox::Look(look) => look(&self.plan, now),
            Inbox::Explain(subject, reply) => {
                drop(reply.try_send(self.plan.explain(now, &subject)))
            }
            Inbox::Machines(reply) => drop(reply.try_send(self.plan.explain_machines(now))),
            Inbox::Idle(reply) => drop(reply.try_send(self.plan.is_idle())),
            Inbox::Event(_) | Inbox::Leave => {}
        }
        true
    }

    /// One turn about the events taken, and others about those that come of it.
    fn turn(&mut self) {
        while !self.events.is_empty() {
            self.items = 0;
            let now = self.clock.now();
            self.plan.turn(now, &mut self.events, &mut self.actions);
            for action in self.actions.drain(..) {
                let (batch, records) = (&mut self.batch, &mut self.records);
                carry_out(action, self.ways, batch, records, &mut self.own);
            }
            send_records(&mut self.records, self.ways);
            self.events.extend(self.own.drain(..));
        }
    }
}

/// Gives the inspectors their questions, bounded by what the plan allows to be under way.
fn hand_out(batch: &mut Vec<(QuestionId, Arc<str>)>, questions: &Sender<Question>) {
    let mut rest = std::mem::take(batch);
    while !rest.is_empty() {
        let tail = rest.split_off(rest.len().min(BATCH));
        // The inspectors leave after the plan.
        let _ = questions.send(Question::Inspect(rest));
        rest = tail;
    }
}

/// Gives the writer what was recorded: together, so that the end of a step and of its build are one wait for the disk.
fn send_records(records: &mut Vec<Entry>, ways: &Ways) {
    if !records.is_empty() {
        // A writer that has left loses nothing that the next start would not find again.
        let _ = ways
            .context
            .writer
            .send(Message::Write(std::mem::take(records)));
    }
}

fn carry_out(
    action: Action,
    ways: &Ways,
    batch: &mut Vec<(QuestionId, Arc<str>)>,
    records: &mut Vec<Entry>,
    own: &mut VecDeque<Event>,
) {
    let context = &ways.context;
    match action {
        Action::Inspect { question, drv } => batch.push((question, drv)),
        Action::Describe { question, drv } => {
            let _ = ways.questions.send(Question::Describe(question, drv));
        }
        Action::ReadBuilds { builds } => {
            let _ = ways.monitor.send(monitor::Message::Read(builds));
        }
        Action::PageTaken => {
            let _ = ways.monitor.send(monitor::Message::PageTaken);
        }
        Action::Start(start) => {
            // Its slot sends a record of its own, which may follow from these.
            send_records(records, ways);
            let (run, ticket) = (start.run, start.ticket);
            let Some(machine) = context.machines.get(start.machine) else {
                unreachable!("BUG: the plan knows a machine that the registry does not")
            };
            log::info!(
                "performing step '{}' on '{}' (needed by build {} and {} others)",
                start.drv,
                machine.name,
                start.primary,
                start.wanted_by.saturating_sub(1)
            );
            context.runs.expect(run);
            if let Err(error) = machine.slots.start(context, &machine, start) {
                context.runs.forget(run);
                context.void_ticket(ticket);
                let message = format!("cannot start a thread for a slot: {error}");
                let now = unix_now();
                let outcome = Outcome::OurFault {
                    message: message.into(),
                };
                let end = RunEnd {
                    outcome,
                    start: now,
                    stop: now,
                    overhead_ms: 0,
                    has_log: false,
                };
                own.push_back(Event::RunEnded { run, end });
            }
        }
        Action::Kill { run } => context.runs.kill(run),
        Action::Record { ticket, record } => records.push(Entry {
            ticket,
            body: Body::Record(record),
        }),
        Action::Say { level, text } => match level {
            Level::Info => log::info!("{text}"),
            Level::Warn => log::warn!("{text}"),
            Level::Error => log::error!("{text}"),
        },
    }
}
