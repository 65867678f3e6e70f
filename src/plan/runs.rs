//! The attempts under way, by the id the world knows them by.

use crate::base::hash::FixedMap;
use crate::base::prefetch;
use crate::model::{BuildId, Millis, Phase, RunId};

#[derive(Clone, Copy)]
pub struct Run {
    pub id: RunId,
    pub step: u32,
    pub machine: u32,
    pub primary: BuildId,
    /// The jobset on whose account it runs.
    pub payer: u32,
    pub phase: Phase,
    pub phase_since: Millis,
    /// When the plan started it.
    pub began: Millis,
    /// It occupies a slot: until it receives outputs.
    pub holds_slot: bool,
    /// The plan asked for its end.
    pub killed: bool,
    /// Because its machine was disabled.
    pub evicted: bool,
}

/// See the module.
#[derive(Default)]
pub struct Runs {
    slots: Vec<Option<Run>>,
    free: Vec<u32>,
    by_id: FixedMap<u64, u32>,
    last: u64,
}

impl Runs {
    pub fn len(&self) -> usize {
        self.by_id.len()
    }

    pub fn is_empty(&self) -> bool {
        self.by_id.is_empty()
    }

    pub fn next_id(&mut self) -> RunId {
        self.last += 1;
        RunId(self.last)
    }

    /// How many were ever started.
    pub fn started(&self) -> u64 {
        self.last
    }

    pub fn add(&mut self, run: Run) -> u32 {
        let slot = match self.free.pop() {
            Some(slot) => slot,
            None => {
                self.slots.push(None);
                self.slots.len() as u32 - 1
            }
        };
        self.slots[slot as usize] = Some(run);
        self.by_id.insert(run.id.0, slot);
        slot
    }

    pub fn find(&mut self, id: RunId) -> Option<&mut Run> {
        let slot = *self.by_id.get(&id.0)?;
        self.slots[slot as usize].as_mut()
    }

    /// Where a run is kept.
    pub fn slot_of(&self, id: RunId) -> Option<u32> {
        self.by_id.get(&id.0).copied()
    }

    /// Fetches a run.
    pub fn fetch(&self, slot: u32) {
        prefetch::item(&self.slots, slot as usize);
    }

    pub fn at(&mut self, slot: u32) -> &mut Run {
        self.slots[slot as usize]
            .as_mut()
            .expect("BUG: a running step without a run")
    }

    pub fn peek(&self, slot: u32) -> &Run {
        self.slots[slot as usize]
            .as_ref()
            .expect("BUG: a running step without a run")
    }

    pub fn remove(&mut self, id: RunId) -> Option<Run> {
        let slot = self.by_id.remove(&id.0)?;
        self.free.push(slot);
        self.slots[slot as usize].take()
    }

    pub fn all(&self) -> impl Iterator<Item = &Run> {
        self.slots.iter().flatten()
    }
}
