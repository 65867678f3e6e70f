//! What an ended process left under way on other machines. Each of these machines is asked, as soon as the machines
//! file is read, whether it finished its steps after all; their outputs are fetched, and the steps succeed.
//!
//! Until its machine has answered (or could not, within seconds) nothing else happens to such a step: the plan's question
//! about it is parked here. That is the whole of it for the plan, which learns of a valid step or of one to be built.

use std::collections::{BTreeMap, HashMap};
use std::panic::{catch_unwind, AssertUnwindSafe};
use std::sync::{Arc, Mutex, MutexGuard};

use super::connection::Trouble;
use super::machine::Machine;
use super::{adopt, inspect, slot, Context};
use crate::base::lock::lock;
use crate::db::leftovers::BusyStep;
use crate::db::writer::{Body, Entry, Message};
use crate::model::{MachineId, Ticket};
use crate::plan::event::{Event, QuestionId};
use crate::sys::kill::KillSwitch;
use crate::sys::thread;

/// Busy rows whose machines are still to be asked, and the questions that wait for the answers. A leaf lock.
#[derive(Default)]
pub struct Leftovers {
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    /// Rows found at start; nobody has been asked yet.
    rows: Vec<BusyStep>,
    /// By derivation: rows not settled yet, and the plan's questions.
    parked: HashMap<String, Parked>,
}

#[derive(Default)]
struct Parked {
    rows: usize,
    questions: Vec<(QuestionId, Arc<str>)>,
}

impl Leftovers {
    pub fn add(&self, step: BusyStep) {
        let mut state = self.lock();
        state.parked.entry(step.drv.clone()).or_default().rows += 1;
        state.rows.push(step);
    }

    /// Keeps the questions about steps that a machine is asked about; gives back the others.
    pub fn park(&self, batch: Vec<(QuestionId, Arc<str>)>) -> Vec<(QuestionId, Arc<str>)> {
        let mut state = self.lock();
        if state.parked.is_empty() {
            return batch;
        }
        let mut rest = Vec::with_capacity(batch.len());
        for question in batch {
            match state.parked.get_mut(&*question.1) {
                Some(parked) => parked.questions.push(question),
                None => rest.push(question),
            }
        }
        rest
    }

    /// A row is settled. The questions that may be answered now.
    fn settled(&self, drv: &str) -> Vec<(QuestionId, Arc<str>)> {
        let mut state = self.lock();
        let Some(parked) = state.parked.get_mut(drv) else {
            return Vec::new();
        };
        parked.rows -= 1;
        if parked.rows > 0 {
            return Vec::new();
        }
        state
            .parked
            .remove(drv)
            .map(|parked| parked.questions)
            .unwrap_or_default()
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        lock(&self.state)
    }
}

/// Asks the machines about what was left there, each in a thread of its own. The machines are known now; from the second
/// time on there is nothing to do.
pub fn ask_machines(context: &Arc<Context>) {
    let rows = std::mem::take(&mut context.leftovers.lock().rows);
    let mut by_machine: BTreeMap<Option<MachineId>, Vec<BusyStep>> = BTreeMap::new();
    for row in rows {
        let machine = context.machines.recorded_as(&row.machine);
        let far = machine.filter(|machine| !machine.line().is_localhost);
        by_machine
            .entry(far.map(|machine| machine.id))
            .or_default()
            .push(row);
    }
    for (id, rows) in by_machine {
        let machine = id.and_then(|id| context.machines.get(id));
        let name = machine.as_ref().map_or("-", |machine| &machine.name);
        let name = format!("ask-{name}");
        let rows = Arc::new(Mutex::new(rows));
        let (for_thread, own) = (rows.clone(), context.clone());
        let asking = thread::spawn(name, move || {
            ask(&own, machine.as_ref(), take(&for_thread));
        });
        if let Err(error) = asking {
            log::error!("cannot start a thread to ask a machine what it finished: {error}");
            ask(context, None, take(&rows));
        }
    }
}

fn take(rows: &Mutex<Vec<BusyStep>>) -> Vec<BusyStep> {
    std::mem::take(&mut *lock(rows))
}

/// Settles the rows of one machine; without a machine all are aborted. A process that stops leaves the rest busy, for
/// the next one.
fn ask(context: &Arc<Context>, machine: Option<&Arc<Machine>>, rows: Vec<BusyStep>) {
    let way = machine.and_then(|machine| greet(machine, rows.len()).map(|kill| (machine, kill)));
    for row in rows {
        if context.is_stopping() {
            return;
        }
        let fetched = way
            .as_ref()
            .is_some_and(|(machine, kill)| fetch(context, machine, kill, &row.drv));
        let adoption = if fetched {
            adopt::adoption(context, &row).unwrap_or_else(|message| {
                log::error!("cannot adopt '{}': {message}", row.drv);
                None
            })
        } else {
            None
        };
        let body = match adoption {
            Some(adoption) => Body::Adopt(adoption),
            None => {
                adopt::say_aborted(&row);
                Body::Abandon {
                    build: row.build,
                    stepnr: row.stepnr,
                }
            }
        };
        // The row first, so that its builds finish as built before the plan hears that the step is valid.
        let _ = context.writer.send(Message::Write(vec![Entry {
            ticket: Ticket(0),
            body,
        }]));
        let questions = context.leftovers.settled(&row.drv);
        if !questions.is_empty() {
            let answers = inspect::inspect_few(context, &questions);
            context.tell_plan(Event::Facts { answers });
        }
    }
}

/// Opens a connection, which the steps then share. `None`: the machine does not answer.
fn greet(machine: &Arc<Machine>, steps: usize) -> Option<Arc<KillSwitch>> {
    log::info!(
        "asking '{}' whether it finished the {steps} steps that were under way there",
        machine.name
    );
    let kill = Arc::new(KillSwitch::new().ok()?);
    match machine.quick_connection(&kill) {
        Ok(connection) => {
            machine.give_back(connection);
            Some(kill)
        }
        Err(trouble) => {
            let why = match trouble {
                Trouble::Killed => "interrupted".to_owned(),
                Trouble::Machine(message) | Trouble::Ours(message) => message,
            };
            log::warn!(
                "cannot ask '{}' what it finished, so its steps are built again: {why}",
                machine.name
            );
            None
        }
    }
}

fn fetch(
    context: &Arc<Context>,
    machine: &Arc<Machine>,
    kill: &Arc<KillSwitch>,
    drv: &str,
) -> bool {
    let collect = || slot::collect(context, machine, kill, drv);
    match catch_unwind(AssertUnwindSafe(collect)) {
        Ok(Ok(fetched)) => {
            if fetched {
                log::info!(
                    "'{}' finished '{drv}' while no queue runner was there",
                    machine.name
                );
            }
            fetched
        }
        Ok(Err(message)) => {
            log::warn!("cannot fetch the outputs of '{drv}': {message}");
            false
        }
        Err(_) => {
            log::error!("BUG: fetching the outputs of '{drv}' panicked");
            false
        }
    }
}
