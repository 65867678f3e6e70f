//! A plan that starts nothing itself but follows another queue runner: starts and ends are told to it, and it says what
//! it would have done. Decides nothing that the other parts do not.

use std::sync::Arc;

use super::explanation::{Explanation, Subject};
use super::graph::State;
use super::machines::{Choice, Machines};
use super::Plan;
use crate::model::{MachineId, Millis, RunId};

/// Where a step stands for a plan that follows.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Stands {
    /// It could be started now.
    Ready,
    Running,
    /// Nothing is left to do for it.
    Valid,
    /// It would not be started yet; why.
    Waits(String),
    /// No build that the plan knows wants it.
    Unknown,
}

impl Plan {
    /// From now on nothing is started.
    pub fn follow(&mut self) {
        self.following = true;
    }

    pub fn standing(&self, now: Millis, drv: &str) -> Stands {
        let Some(step) = self.graph.names.find(drv) else {
            return Stands::Unknown;
        };
        match self.graph.step(step).state {
            State::Runnable => Stands::Ready,
            State::Running => Stands::Running,
            State::Valid => Stands::Valid,
            State::Free => Stands::Unknown,
            _ => Stands::Waits(self.why_drv(now, drv)),
        }
    }

    /// One line: why a step is not started, or what it is doing.
    pub fn why_drv(&self, now: Millis, drv: &str) -> String {
        let lines = match self.explain(now, &Subject::Drv(drv.into())) {
            Some(Explanation::Step(step)) => step.lines(),
            _ => Vec::new(),
        };
        lines.join("; ")
    }

    /// The other one has started a step on a configured machine. `None`: it is not ready here.
    pub fn started_elsewhere(
        &mut self,
        now: Millis,
        drv: &str,
        machine: MachineId,
    ) -> Option<RunId> {
        self.now = self.now.max(now);
        let step = self.graph.names.find(drv)?;
        self.machines.get(machine.0)?;
        let ready = self.graph.step(step).state == State::Runnable;
        if !ready {
            return None;
        }
        let run = self.occupy(step, machine.0);
        self.own(run);
        Some(self.runs.peek(run).id)
    }

    /// What each machine with a free slot would take next.
    pub fn would_start(&mut self) -> Vec<(MachineId, Arc<str>)> {
        let mut found = Vec::new();
        for at in 0..self.machines.machines.len() as u32 {
            let free = self.machines.get(at).is_some_and(|machine| {
                machine.listed && machine.spec.enabled && machine.current < machine.spec.slots
            });
            if !free {
                continue;
            }
            let choice = Choice {
                machine: at,
                probe: false,
                urgent_only: false,
            };
            let mask = self.machines.mask(choice);
            let best = self
                .index
                .best(mask, false, &self.graph.steps, &self.jobsets);
            if let Some(step) = best {
                found.push((Machines::id(at), self.graph.drv(step).into()));
            }
        }
        found
    }
}
