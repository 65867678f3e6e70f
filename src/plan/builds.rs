//! The builds the plan has heard of: queued, asked for, or finished and not yet known to be gone from the queue.
//!
//! Does not know what their steps do.

use super::event::Pass;
use super::graph::{Graph, NONE};
use crate::base::hash::FixedMap;
use crate::base::prefetch;
use crate::model::{BuildId, Millis, Ticket};

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum BuildState {
    /// The slot is free.
    Free,
    /// Listed but unknown: its row was asked for at this time.
    Asked(Millis),
    /// Unfinished, attached to its step.
    Queued,
    /// The plan finished it under this ticket. Kept until a list read after that commit lacks it, so that an older
    /// list does not bring it back.
    Finished(Ticket),
}

#[derive(Clone, Copy)]
pub struct Build {
    pub id: BuildId,
    pub state: BuildState,
    pub jobset: u32,
    /// Its top-level step.
    pub step: u32,
    /// The next build of the same step.
    pub next: u32,
    pub max_silent: u32,
    pub timeout: u32,
    pub global: i32,
    pub local: i32,
    /// The newest pass that had begun when it became known.
    pub since: Pass,
    /// The newest pass that listed it.
    pub seen: Pass,
}

/// See the module.
#[derive(Default)]
pub struct Builds {
    pub slots: Vec<Build>,
    free: Vec<u32>,
    by_id: FixedMap<i32, u32>,
    pub queued: u32,
    pub asked: u32,
}

impl Builds {
    pub fn find(&self, id: BuildId) -> Option<u32> {
        self.by_id.get(&id.0).copied()
    }

    /// Fetches a build.
    #[inline]
    pub fn fetch(&self, slot: u32) {
        prefetch::item(&self.slots, slot as usize);
    }

    pub fn get(&self, slot: u32) -> &Build {
        &self.slots[slot as usize]
    }

    pub fn get_mut(&mut self, slot: u32) -> &mut Build {
        &mut self.slots[slot as usize]
    }

    pub fn is_queued(&self, id: BuildId) -> bool {
        self.find(id)
            .is_some_and(|slot| self.get(slot).state == BuildState::Queued)
    }

    /// A slot for a build that is not known yet.
    pub fn add(&mut self, build: Build) -> u32 {
        let slot = match self.free.pop() {
            Some(slot) => {
                self.slots[slot as usize] = build;
                slot
            }
            None => {
                self.slots.push(build);
                self.slots.len() as u32 - 1
            }
        };
        let before = self.by_id.insert(build.id.0, slot);
        assert!(before.is_none(), "BUG: build {} is known already", build.id);
        self.count(build.state, 1);
        slot
    }

    pub fn set_state(&mut self, slot: u32, state: BuildState) {
        let old = std::mem::replace(&mut self.slots[slot as usize].state, state);
        self.count(old, u32::MAX);
        self.count(state, 1);
    }

    /// `by`: 1, or `u32::MAX` for one less.
    fn count(&mut self, state: BuildState, by: u32) {
        match state {
            BuildState::Queued => self.queued = self.queued.wrapping_add(by),
            BuildState::Asked(_) => self.asked = self.asked.wrapping_add(by),
            BuildState::Free | BuildState::Finished(_) => {}
        }
    }

    /// Forgets a build that is attached to no step.
    pub fn remove(&mut self, slot: u32) {
        let Build { id, state, .. } = *self.get(slot);
        assert!(
            state != BuildState::Queued && state != BuildState::Free,
            "BUG: removing a queued build"
        );
        self.set_state(slot, BuildState::Free);
        self.by_id.remove(&id.0);
        self.free.push(slot);
    }

    /// Makes a queued build one of its step's builds.
    pub fn attach(&mut self, slot: u32, graph: &mut Graph) {
        let build = &mut self.slots[slot as usize];
        let step = graph.step_mut(build.step);
        build.next = step.builds;
        step.builds = slot;
    }

    /// Takes one build out of its step's list.
    pub fn detach(&mut self, slot: u32, graph: &mut Graph) {
        let Build { step, next, .. } = *self.get(slot);
        let first = graph.step(step).builds;
        if first == slot {
            graph.step_mut(step).builds = next;
            return;
        }
        let mut at = first;
        while self.get(at).next != slot {
            at = self.get(at).next;
            assert!(at != NONE, "BUG: a queued build is not in its step's list");
        }
        self.get_mut(at).next = next;
    }

    /// Takes all builds out of a step's list: slots and ids, by ascending id.
    pub fn detach_all(&mut self, step: u32, graph: &mut Graph) -> Vec<(BuildId, u32)> {
        let builds = self.of_step(step, graph);
        graph.step_mut(step).builds = NONE;
        builds
    }

    /// The builds of a step, by ascending id.
    pub fn of_step(&self, step: u32, graph: &Graph) -> Vec<(BuildId, u32)> {
        let mut builds = Vec::new();
        let mut at = graph.step(step).builds;
        while at != NONE {
            let build = self.get(at);
            builds.push((build.id, at));
            at = build.next;
        }
        builds.sort_unstable();
        builds
    }
}
