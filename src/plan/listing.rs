//! Steps one by one, for those who want to see them; each list has an end, whatever the size of the queue.
//!
//! Only looks.

use std::cmp::Reverse;

use super::graph::{State, NONE};
use super::Plan;
use crate::model::{BuildId, Millis, Phase};

/// Slots of the table of steps that are looked at for one list.
const LOOKED_AT_MAX: usize = 100_000;

/// Some steps, and how many there are of their kind.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct StepList {
    pub total: u64,
    pub steps: Vec<StepStatus>,
}

#[derive(Clone, Debug, PartialEq)]
pub struct StepStatus {
    pub drv: Box<str>,
    /// Its state, in a word.
    pub state: &'static str,
    pub since: Millis,
    pub is_runnable: bool,
    pub is_finished: bool,
    /// The derivation's platform and the platform with features, once they are known.
    pub platform: Option<Box<str>>,
    pub system_type: Option<Box<str>>,
    /// Failed tries.
    pub tries: u32,
    pub global_priority: i32,
    pub local_priority: i32,
    pub lowest_build: BuildId,
    /// The lowest share among its jobsets.
    pub share_used: f64,
    /// Inputs that are not there yet.
    pub deps_missing: u32,
    /// Where it runs, and how far it is.
    pub run: Option<(Box<str>, Phase)>,
}

impl State {
    /// A word for programs.
    fn word(self) -> &'static str {
        match self {
            State::Free => "free",
            State::Asking | State::Inspecting | State::AskLater => "uninspected",
            State::Blocked => "blocked",
            State::Runnable => "runnable",
            State::Deferred => "deferred",
            State::Running => "running",
            State::Valid => "valid",
            State::Doomed => "failed",
        }
    }
}

impl Plan {
    /// At most `max` unfinished steps, in no order.
    pub fn unfinished_steps(&self, max: usize) -> StepList {
        let steps = self.graph.steps.iter().enumerate().take(LOOKED_AT_MAX);
        let unfinished = steps
            .filter(|(_, step)| !matches!(step.state, State::Free | State::Valid | State::Doomed));
        let total = |state: State| u64::from(self.states[state as usize]);
        StepList {
            total: [
                State::Asking,
                State::Inspecting,
                State::AskLater,
                State::Blocked,
                State::Runnable,
                State::Deferred,
                State::Running,
            ]
            .map(total)
            .iter()
            .sum(),
            steps: unfinished
                .take(max)
                .map(|(id, _)| self.step_status(id as u32))
                .collect(),
        }
    }

    /// At most `max` of the steps that wait for a machine, by priority; of those of equal priority the lowest build's first.
    pub fn ready_steps(&self, max: usize) -> StepList {
        let mut ids: Vec<u32> = Vec::new();
        for class in 0..self.index.classes.len() as u32 {
            let entries = self.index.runnable_in(class, &self.graph.steps);
            ids.extend(entries.take(LOOKED_AT_MAX - ids.len().min(LOOKED_AT_MAX)));
        }
        ids.sort_unstable_by_key(|&id| {
            let step = self.graph.step(id);
            (Reverse(step.global), Reverse(step.local), step.lowest, id)
        });
        ids.dedup();
        ids.truncate(max);
        StepList {
            total: u64::from(self.index.runnable_steps),
            steps: ids.into_iter().map(|id| self.step_status(id)).collect(),
        }
    }

    /// At most `max` of the running steps, the oldest first.
    pub fn running_steps(&self, max: usize) -> StepList {
        let mut runs: Vec<_> = self.runs.all().map(|run| (run.id, run.step)).collect();
        runs.sort_unstable();
        runs.truncate(max);
        StepList {
            total: self.runs.len() as u64,
            steps: runs
                .into_iter()
                .map(|(_, step)| self.step_status(step))
                .collect(),
        }
    }

    fn step_status(&self, id: u32) -> StepStatus {
        let step = self.graph.step(id);
        let class = (step.class != NONE).then(|| &self.index.classes[step.class as usize]);
        let run = (step.state == State::Running).then(|| {
            let run = self.runs.peek(step.aux);
            let machine = self.machines.get(run.machine);
            let name = machine.map_or("", |machine| &machine.spec.name);
            (name.into(), run.phase)
        });
        StepStatus {
            drv: self.graph.drv(id).into(),
            state: step.state.word(),
            since: self.began + u64::from(step.since) * 1000,
            is_runnable: step.state == State::Runnable,
            is_finished: matches!(step.state, State::Valid | State::Doomed),
            platform: class.map(|class| class.platform.clone()),
            system_type: class.map(|class| class.system_type.clone()),
            tries: u32::from(step.tries),
            global_priority: step.global,
            local_priority: step.local,
            lowest_build: BuildId(step.lowest),
            share_used: self.jobsets.lowest_share(step.set),
            deps_missing: step.missing,
            run,
        }
    }
}
