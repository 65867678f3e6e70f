//! The graph of steps: flat arrays, ids that are reused, edges in one pool.
//!
//! Knows which step waits for which and who wants whom. Does not know why a step changes its state, what
//! a machine is, or the order among runnable steps.
//!
//! An edge lies in two lists: the dependencies of the step that waits, and the dependents of the step it waits for.
//! Nobody searches for it: when the awaited step is done or the waiting one is gone, its *epoch* rises, and links to
//! it with the old epoch mean nothing any more. A list of dependents more than half dead is swept.
//!
//! The graph is far larger than the processor's caches and walked in no order, so what counts is how many steps
//! are fetched at the same time: lists are contiguous, a block of a list is fetched before it is worked on, and the plan
//! fetches what the next events are about (`ahead`).

use crate::base::huge;
use crate::base::interner::{Guess, Interner};
use crate::base::pool::{List, Pool};
use crate::base::prefetch;
use crate::base::texts::Texts;

/// No step, no build.
pub const NONE: u32 = u32::MAX;

/// Where a step stands. Every change goes through `Plan::set_state`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub enum State {
    /// The slot is free.
    Free,
    /// Waits for its question to be asked.
    Asking,
    /// The question is under way.
    Inspecting,
    /// Its question is asked again at a time (something of ours failed).
    AskLater,
    /// Needed; some dependency is not valid yet.
    Blocked,
    /// Needed; every dependency is valid; waits for a machine.
    Runnable,
    /// Needed; every dependency is valid; waits for its retry time.
    Deferred,
    Running,
    /// Every output is valid. Kept a while so that the question is not asked again, and while builds wait for
    /// their description.
    Valid,
    /// Failed, or waits for something that failed; its builds are about to be finished.
    Doomed,
}

pub const STATES: usize = 10;

impl State {
    /// Needed, and not started.
    pub fn waits(self) -> bool {
        matches!(self, State::Blocked | State::Runnable | State::Deferred)
    }

    /// Is a change from `self` to `to` one of those that make sense?
    pub fn may_become(self, to: State) -> bool {
        use State::*;
        match self {
            Free => to == Asking,
            Asking => matches!(to, Inspecting | Free | Doomed),
            Inspecting => matches!(to, Blocked | Runnable | Valid | AskLater | Doomed | Free),
            AskLater => matches!(to, Asking | Free | Doomed),
            Blocked => matches!(to, Runnable | Doomed | Free),
            Runnable => matches!(to, Running | Doomed | Free),
            Deferred => matches!(to, Runnable | Doomed | Free),
            Running => matches!(to, Runnable | Deferred | AskLater | Valid | Doomed | Free),
            Valid => matches!(to, AskLater | Free),
            Doomed => to == Free,
        }
    }
}

/// One derivation to be built, found valid or failed. 84 bytes; its drv path is in [`Graph::names`].
#[derive(Clone, Copy)]
pub struct Step {
    pub state: State,
    /// In the work list that spreads priorities.
    pub spreading: bool,
    /// In the list of runnable steps whose key changed.
    pub rekey: bool,
    /// The outputs' description has been asked for.
    pub describing: bool,
    /// Rises with every change of state and key: heap entries, timers and questions carry it, and those with
    /// another number are stale. Never set back, also not when the slot is used again.
    pub stamp: u32,
    /// Rises when the step is done or gone: older links to it are dead. Never set back either.
    epoch: u32,
    /// Set of jobsets that want it.
    pub set: u32,
    /// Highest global and local priority, lowest id of the builds that ever wanted it.
    pub global: i32,
    pub local: i32,
    pub lowest: i32,
    /// Largest limits of the builds that ever wanted it; `u32::MAX` is no limit.
    pub max_silent: u32,
    pub timeout: u32,
    /// Dependencies that are not valid yet.
    pub missing: u32,
    /// Dependents that still wait for it.
    pub rdeps_live: u32,
    /// Dependents it ever had since it was made (Hydra's `rdeps` keeps dead ones too).
    pub rdeps_seen: u32,
    rdeps: List,
    deps: List,
    /// First of the builds whose top-level derivation it is.
    pub builds: u32,
    /// Machine class; [`NONE`] until the step is known to be needed.
    pub class: u32,
    /// Since when it is in this state, seconds since the plan began.
    pub since: u32,
    /// Running: its run's slot. Deferred, AskLater: until when, seconds since the plan began.
    pub aux: u32,
    /// The emergency that wants it: counts while it is the index's [`emergency`](super::index::Index::emergency).
    pub emergency: u16,
    /// Failed tries of its own.
    pub tries: u8,
    /// Times it was put off for a fault of ours.
    pub put_off: u8,
}

const FRESH: Step = Step {
    state: State::Free,
    spreading: false,
    rekey: false,
    describing: false,
    stamp: 0,
    epoch: 0,
    class: NONE,
    set: 0,
    global: 0,
    local: 0,
    lowest: i32::MAX,
    max_silent: 0,
    timeout: 0,
    missing: 0,
    deps: List::EMPTY,
    rdeps: List::EMPTY,
    rdeps_live: 0,
    rdeps_seen: 0,
    builds: NONE,
    since: 0,
    aux: 0,
    emergency: 0,
    tries: 0,
    put_off: 0,
};

/// One end of an edge.
#[derive(Clone, Copy)]
struct Link {
    step: u32,
    epoch: u32,
}

/// Links whose steps are fetched together before they are worked on.
pub const BLOCK: usize = 32;

/// See the module.
pub struct Graph {
    pub names: Interner,
    pub steps: Vec<Step>,
    links: Pool<Link>,
    /// Kept for its memory.
    fresh: Vec<Link>,
}

impl Graph {
    pub fn new() -> Graph {
        Graph {
            names: Interner::default(),
            steps: Vec::new(),
            links: Pool::default(),
            fresh: Vec::new(),
        }
    }

    pub fn step(&self, step: u32) -> &Step {
        &self.steps[step as usize]
    }

    pub fn step_mut(&mut self, step: u32) -> &mut Step {
        &mut self.steps[step as usize]
    }

    pub fn drv(&self, step: u32) -> &str {
        self.names.text(step)
    }

    /// The step of a derivation, made (in state `Free`) if there is none. `None`: the path is unreasonably long.
    pub fn intern(&mut self, drv: &str) -> Option<(u32, bool)> {
        let (id, new) = self.names.intern(drv)?;
        if new {
            self.make(id);
        }
        Some((id, new))
    }

    /// [`Graph::intern`] for many, with what [`Graph::guess`] said of each; paths that are too long are left out. True if
    /// there is one.
    pub fn intern_all(
        &mut self,
        drvs: &Texts,
        guesses: &[Guess],
        found: &mut Vec<(u32, bool)>,
    ) -> bool {
        found.clear();
        for (drv, &guess) in drvs.iter().zip(guesses) {
            if let Some((id, new)) = self.names.intern_guessed(drv, guess) {
                if new {
                    self.make(id);
                }
                found.push((id, new));
            }
        }
        found.len() < drvs.len()
    }

    fn make(&mut self, id: u32) {
        if id as usize == self.steps.len() {
            huge::reserve(&mut self.steps, 1);
            self.steps.push(FRESH);
        }
        let slot = &mut self.steps[id as usize];
        assert!(
            slot.state == State::Free,
            "BUG: a new step's slot is in use"
        );
        let (stamp, epoch) = (slot.stamp, slot.epoch);
        *slot = Step {
            stamp,
            epoch,
            ..FRESH
        };
    }

    /// Fetches a step.
    #[inline]
    pub fn fetch(&self, step: u32) {
        prefetch::item(&self.steps, step as usize);
    }

    /// Fetches the end of a step's list of dependents, for one more; the step is there already.
    #[inline]
    pub fn fetch_rdeps_end(&self, step: u32) {
        if let Some(slot) = self.steps.get(step as usize) {
            self.links.fetch_end(slot.rdeps);
        }
    }

    /// Fetches the first links of a step's list of dependents; the step is there already.
    #[inline]
    pub fn fetch_rdeps(&self, step: u32) {
        let list = self.step(step).rdeps;
        prefetch::all(self.links.get(list), BLOCK * size_of::<Link>());
    }

    /// Fetches the first few dependents of a step; its list of them is there already.
    #[inline]
    pub fn fetch_dependents(&self, step: u32, at_most: usize) {
        let links = self.links.get(self.step(step).rdeps);
        for link in &links[..links.len().min(at_most)] {
            self.fetch(link.step);
        }
    }

    /// Fetches what giving these steps back will need.
    pub fn fetch_all(&self, steps: &[u32]) {
        for &step in steps {
            self.fetch(step);
            self.names.fetch_place(step);
        }
        steps.iter().for_each(|&step| self.names.fetch(step));
        steps.iter().for_each(|&step| self.names.fetch_slot(step));
    }

    /// Gives the slot of a step back. Its edges and builds are gone by now.
    pub fn free(&mut self, step: u32) {
        let slot = &self.steps[step as usize];
        let empty = slot.deps.is_empty() && slot.rdeps.is_empty() && slot.builds == NONE;
        assert!(
            slot.state == State::Free && empty,
            "BUG: freeing a step that is in use"
        );
        self.names.remove(step);
    }

    /// Does a build or a living dependent want it?
    pub fn is_wanted(&self, step: u32) -> bool {
        let slot = self.step(step);
        slot.builds != NONE || slot.rdeps_live > 0
    }

    /// `from`, which waits for nothing yet, waits for these steps from now on.
    pub fn link(&mut self, from: u32, to: &[u32]) {
        let mut deps = std::mem::take(&mut self.fresh);
        deps.clear();
        let waiting = Link {
            step: from,
            epoch: self.step(from).epoch,
        };
        for &step in to {
            let awaited = &mut self.steps[step as usize];
            deps.push(Link {
                step,
                epoch: awaited.epoch,
            });
            self.links.push(&mut awaited.rdeps, waiting);
            awaited.rdeps_live += 1;
            awaited.rdeps_seen = awaited.rdeps_seen.saturating_add(1);
        }
        let deps = self.links.list(&deps);
        let slot = self.step_mut(from);
        assert!(
            slot.deps.is_empty() && slot.missing == 0,
            "BUG: a step is linked twice"
        );
        slot.deps = deps;
        slot.missing = to.len() as u32;
    }

    /// The dependencies of `step` that are not valid yet.
    pub fn deps(&self, step: u32) -> impl Iterator<Item = u32> + '_ {
        self.living(self.step(step).deps)
    }

    /// The steps that wait for `step`.
    pub fn rdeps(&self, step: u32) -> impl Iterator<Item = u32> + '_ {
        self.living(self.step(step).rdeps)
    }

    fn living(&self, list: List) -> impl Iterator<Item = u32> + '_ {
        let links = self.links.get(list).iter();
        let alive = |link: &&Link| self.step(link.step).epoch == link.epoch;
        links.filter(alive).map(|link| link.step)
    }

    /// How many links to dependencies there are, done or not: for [`Graph::dep_at`].
    pub fn deps_len(&self, step: u32) -> usize {
        self.step(step).deps.len()
    }

    /// The dependency behind the link `at`; `None` if it is done. For walks that change steps on the way, in order.
    pub fn dep_at(&self, step: u32, at: usize) -> Option<u32> {
        let links = self.links.get(self.step(step).deps);
        if at % BLOCK == 0 {
            fetch(&self.steps, &links[at..]);
        }
        let link = links[at];
        (self.step(link.step).epoch == link.epoch).then_some(link.step)
    }

    /// How many of the first few dependents have builds of their own: a cheap lower bound for who wants the step.
    pub fn rdeps_with_builds(&self, step: u32, looked_at: usize) -> u32 {
        let links = self.links.get(self.step(step).rdeps);
        let mut found = 0;
        for link in &links[..links.len().min(looked_at)] {
            let slot = self.step(link.step);
            found += u32::from(slot.epoch == link.epoch && slot.builds != NONE);
        }
        found
    }

    /// Cuts every dependent loose, because `step` is done or doomed: their `missing` shrinks. Calls `each` with
    /// every living dependent; returns the number of links walked.
    pub fn cut_rdeps(&mut self, step: u32, mut each: impl FnMut(&mut Step, u32)) -> u32 {
        let slot = self.step_mut(step);
        let mut list = std::mem::take(&mut slot.rdeps);
        slot.rdeps_live = 0;
        slot.epoch = slot.epoch.wrapping_add(1);
        for links in self.links.get(list).chunks(BLOCK) {
            fetch(&self.steps, links);
            for link in links {
                let dependent = &mut self.steps[link.step as usize];
                if dependent.epoch == link.epoch {
                    assert!(dependent.missing > 0, "BUG: a dependent waits for nothing");
                    dependent.missing -= 1;
                    each(dependent, link.step);
                }
            }
        }
        let walked = list.len() as u32;
        self.links.clear(&mut list);
        walked
    }

    /// Gives the links of a step back that waits for nothing any more.
    pub fn drop_done_deps(&mut self, step: u32) {
        let slot = &mut self.steps[step as usize];
        assert!(
            slot.missing == 0,
            "BUG: a step lets go of what it waits for"
        );
        self.links.clear(&mut slot.deps);
    }

    /// Lets go of every dependency, because `step` goes. Those that nobody wants any more are added to `unwanted`;
    /// returns the number of links walked.
    pub fn cut_deps(&mut self, step: u32, unwanted: &mut Vec<u32>) -> u32 {
        let slot = self.step_mut(step);
        assert!(
            slot.rdeps_live == 0,
            "BUG: a step goes that others wait for"
        );
        let mut list = std::mem::take(&mut slot.deps);
        slot.missing = 0;
        slot.epoch = slot.epoch.wrapping_add(1);
        let walked = list.len();
        fetch(&self.steps, self.links.get(list));
        for at in 0..walked {
            let link = self.links.get(list)[at];
            let awaited = self.step_mut(link.step);
            if awaited.epoch != link.epoch {
                continue;
            }
            awaited.rdeps_live -= 1;
            if awaited.rdeps.len() > 2 * awaited.rdeps_live as usize + 8 {
                self.sweep_rdeps(link.step);
            }
            if !self.is_wanted(link.step) {
                unwanted.push(link.step);
            }
        }
        self.links.clear(&mut list);
        walked as u32
    }

    /// Takes the dead links out of a list of dependents, keeping its order.
    fn sweep_rdeps(&mut self, step: u32) {
        let mut list = self.step(step).rdeps;
        let steps = &self.steps;
        self.links.retain(&mut list, |link| {
            steps[link.step as usize].epoch == link.epoch
        });
        self.step_mut(step).rdeps = list;
    }
}

/// Fetches the steps of the first links, all at the same time.
#[inline]
fn fetch(steps: &[Step], links: &[Link]) {
    for link in &links[..links.len().min(BLOCK)] {
        prefetch::item(steps, link.step as usize);
    }
}
