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

    /// Why a step that is ready would be held back here although a machine is free, if it would.
    pub fn holds_back(&self, drv: &str) -> Option<String> {
        let step = self.graph.names.find(drv)?;
        self.held_back(step).map(|by| by.tell())
    }

    /// Can a machine do this step, as it is configured? `None`: one of them is not known.
    pub fn could_do(&self, drv: &str, machine: MachineId) -> Option<bool> {
        let step = self.graph.names.find(drv)?;
        let kind = self.machines.get(machine.0)?.kind;
        let class = self.graph.step(step).class;
        Some(self.machines.kinds[kind as usize].classes.has(class))
    }

    /// The machine that this step would get now.
    pub fn would_use(&self, drv: &str) -> Option<MachineId> {
        let step = self.graph.names.find(drv)?;
        let class = self.graph.step(step).class;
        self.machines.best_but(u32::MAX, class).map(Machines::id)
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
            // What a cap of ours holds back would not be started here either.
            if let Some(step) = best.filter(|step| self.held_back(*step).is_none()) {
                found.push((Machines::id(at), self.graph.drv(step).into()));
            }
        }
        found
    }
}
