//! Failures that look like the machine's: the step gets a second opinion on another machine, and a machine on which several
//! different steps failed alike is set aside.
//!
//! One step that says "no space left" proves nothing: its own test may print that. So a step that fails alike on a second
//! machine is believed to be at fault itself, and speaks against the first machine no more; and it has [`TRIES_MAX`] tries
//! in all, whatever machines there are.

use super::attempt::Starting;
use super::event::Outcome;
use super::graph::State;
use super::runs::Run;
use super::signature::{classify, Signature};
use super::Plan;
use crate::model::{BuildStatus, Millis};

/// Different steps that have to fail alike on a machine before it is set aside.
pub const STEPS_MIN: usize = 3;
/// Within this time, milliseconds.
const WINDOW_MS: u64 = 3_600_000;
/// Tries of a step whose builder fails so, the first one included.
pub const TRIES_MAX: u32 = 3;
/// Steps that are remembered of one machine.
const SUSPECTS_MAX: usize = 16;
/// Steps that wait for another machine than the one they failed on.
const ELSEWHERE_MAX: usize = 1_000;

/// A step that failed on a machine as if the machine were broken.
pub struct Suspect {
    pub signature: Signature,
    pub drv: Box<str>,
    pub at: Millis,
}

/// A deferred step that goes to any other machine as soon as one is free.
#[derive(Clone, Copy)]
pub struct Elsewhere {
    step: u32,
    stamp: u32,
    avoid: u32,
}

/// Whose fault an attempt's end seems to be, by its words.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Suspicion {
    /// Nothing in it speaks of a broken machine, or it failed alike on another one.
    OfTheStep,
    OfTheMachine(Signature),
}

impl Plan {
    /// Looks at how a run ended, and sets its machine aside if this was one too many.
    pub(super) fn suspect(&mut self, run: &Run, outcome: &Outcome) -> Suspicion {
        let message = match outcome {
            Outcome::Failed {
                status: BuildStatus::Failed,
                message,
                ..
            }
            | Outcome::Transient { message, .. } => message,
            _ => return Suspicion::OfTheStep,
        };
        let Some(signature) = classify(message).filter(|_| !run.killed) else {
            return Suspicion::OfTheStep;
        };
        let drv = self.drv(run.step);
        if self.machines.acquit(run.machine, signature, &drv) {
            return Suspicion::OfTheStep;
        }
        let steps = self.machines.accuse(
            run.machine,
            Suspect {
                signature,
                drv: (&*drv).into(),
                at: self.now,
            },
        );
        if steps >= STEPS_MIN {
            let message = format!(
                "{steps} different steps failed there alike within an hour ({}); {}",
                signature.words(),
                signature.advice()
            );
            self.machines.breaks(run.machine, signature);
            self.set_aside(run.machine, &message);
        }
        Suspicion::OfTheMachine(signature)
    }

    /// A step that has just been deferred is not given to this machine before its time has come.
    pub(super) fn seek_another(&mut self, step: u32, avoid: u32) {
        if self.elsewhere.len() < ELSEWHERE_MAX {
            let stamp = self.graph.step(step).stamp;
            self.elsewhere.push(Elsewhere { step, stamp, avoid });
        }
    }

    /// Gives slots to those for which another machine is free.
    pub(super) fn choose_elsewhere(&mut self, starting: &mut Vec<Starting>) {
        // What is held back by a cap or an emergency waits for its time like everything else.
        if self.elsewhere.is_empty() || self.gate().is_some() {
            return;
        }
        for waiting in std::mem::take(&mut self.elsewhere) {
            let slot = self.graph.steps.get(waiting.step as usize);
            let Some(slot) =
                slot.filter(|slot| slot.stamp == waiting.stamp && slot.state == State::Deferred)
            else {
                continue;
            };
            match self.machines.best_but(waiting.avoid, slot.class) {
                Some(machine) if self.writer_keeps_up() => {
                    self.set_state(waiting.step, State::Runnable);
                    let run = self.occupy(waiting.step, machine);
                    let ticket = self.next_ticket();
                    let step = waiting.step;
                    starting.push(Starting { run, step, ticket });
                }
                _ => self.elsewhere.push(waiting),
            }
        }
    }
}

/// Forgets what is too old to count.
pub fn forget_old(suspects: &mut Vec<Suspect>, now: Millis) {
    suspects.retain(|suspect| now.since(suspect.at) <= WINDOW_MS);
    if suspects.len() >= SUSPECTS_MAX {
        suspects.remove(0);
    }
}
