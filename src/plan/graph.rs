//! The graph of steps: flat arrays, ids that are reused, edges in one pool.
//!
//! Knows which step waits for which and who wants whom. Does not know why a step changes its state, what
//! a machine is, or the order among runnable steps.
//!
//! An edge lies in two lists: the dependencies of the step that waits, and the dependents of the step it
//! waits for. Each side lets go of it alone: when the awaited step is done, its side is cut (`to` = [`NONE`])
//! and the edge stays with the waiting one; when the waiting one is dropped, `from` is cut, and the awaited
//! step's list is swept when more than half of it is cut. The last side to let go frees the edge.

use crate::base::interner::Interner;

/// No step, no edge, no build.
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
    /// Is a change from `self` to `to` one of those that make sense?
    pub fn may_become(self, to: State) -> bool {
        use State::*;
        match self {
            Free => to == Asking,
            Asking => matches!(to, Inspecting | Free | Doomed),
            Inspecting => matches!(to, Blocked | Runnable | Valid | Doomed | Free),
            AskLater => matches!(to, Asking | Free | Doomed),
            Blocked => matches!(to, Runnable | Doomed | Free),
            Runnable => matches!(to, Running | Doomed | Free),
            Deferred => matches!(to, Runnable | Doomed | Free),
            Running => matches!(to, Runnable | Deferred | Valid | Doomed | Free),
            Valid => matches!(to, AskLater | Free),
            Doomed => to == Free,
        }
    }
}

/// One derivation to be built, found valid or failed. 76 bytes; its drv path is in [`Graph::names`].
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
    /// Machine class; [`NONE`] until the step is known to be needed.
    pub class: u32,
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
    pub deps: u32,
    pub rdeps: u32,
    pub rdeps_live: u32,
    pub rdeps_cut: u32,
    /// Dependents it ever had since it was made (Hydra's `rdeps` keeps dead ones too).
    pub rdeps_seen: u32,
    /// First of the builds whose top-level derivation it is.
    pub builds: u32,
    /// Since when it is in this state, seconds since the plan began.
    pub since: u32,
    /// Running: its run's slot. Deferred, AskLater: until when, seconds since the plan began.
    pub aux: u32,
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
    class: NONE,
    set: 0,
    global: 0,
    local: 0,
    lowest: i32::MAX,
    max_silent: 0,
    timeout: 0,
    missing: 0,
    deps: NONE,
    rdeps: NONE,
    rdeps_live: 0,
    rdeps_cut: 0,
    rdeps_seen: 0,
    builds: NONE,
    since: 0,
    aux: 0,
    tries: 0,
    put_off: 0,
};

#[derive(Clone, Copy)]
struct Edge {
    /// The step that waits.
    from: u32,
    /// The step it waits for.
    to: u32,
    next_dep: u32,
    next_rdep: u32,
}

/// See the module.
pub struct Graph {
    pub names: Interner,
    pub steps: Vec<Step>,
    edges: Vec<Edge>,
    /// Free edges, linked by `next_dep`.
    edges_free: u32,
}

impl Graph {
    pub fn new() -> Graph {
        Graph {
            names: Interner::default(),
            steps: Vec::new(),
            edges: Vec::new(),
            edges_free: NONE,
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
            if id as usize == self.steps.len() {
                self.steps.push(FRESH);
            }
            let slot = &mut self.steps[id as usize];
            assert!(
                slot.state == State::Free,
                "BUG: a new step's slot is in use"
            );
            let stamp = slot.stamp;
            *slot = Step { stamp, ..FRESH };
        }
        Some((id, new))
    }

    /// Gives the slot of a step back. Its edges and builds are gone by now.
    pub fn free(&mut self, step: u32) {
        let slot = &self.steps[step as usize];
        assert!(
            slot.state == State::Free
                && slot.deps == NONE
                && slot.rdeps == NONE
                && slot.builds == NONE,
            "BUG: freeing a step that is in use"
        );
        self.names.remove(step);
    }

    /// Does a build or a living dependent want it?
    pub fn is_wanted(&self, step: u32) -> bool {
        let slot = self.step(step);
        slot.builds != NONE || slot.rdeps_live > 0
    }

    /// `from` waits for `to`.
    pub fn link(&mut self, from: u32, to: u32) {
        let edge = Edge {
            from,
            to,
            next_dep: self.step(from).deps,
            next_rdep: self.step(to).rdeps,
        };
        let at = if self.edges_free == NONE {
            self.edges.push(edge);
            self.edges.len() as u32 - 1
        } else {
            let at = self.edges_free;
            self.edges_free = self.edges[at as usize].next_dep;
            self.edges[at as usize] = edge;
            at
        };
        let waiting = self.step_mut(from);
        waiting.deps = at;
        waiting.missing += 1;
        let awaited = self.step_mut(to);
        awaited.rdeps = at;
        awaited.rdeps_live += 1;
        awaited.rdeps_seen = awaited.rdeps_seen.saturating_add(1);
    }

    fn free_edge(&mut self, at: u32) {
        self.edges[at as usize] = Edge {
            from: NONE,
            to: NONE,
            next_dep: self.edges_free,
            next_rdep: NONE,
        };
        self.edges_free = at;
    }

    /// The dependencies of `step` that are not valid yet.
    pub fn deps(&self, step: u32) -> impl Iterator<Item = u32> + '_ {
        self.list(self.step(step).deps, |edge| (edge.to, edge.next_dep))
    }

    /// The steps that wait for `step`.
    pub fn rdeps(&self, step: u32) -> impl Iterator<Item = u32> + '_ {
        self.list(self.step(step).rdeps, |edge| (edge.from, edge.next_rdep))
    }

    fn list<'a>(
        &'a self,
        head: u32,
        look: impl Fn(&Edge) -> (u32, u32) + 'a,
    ) -> impl Iterator<Item = u32> + 'a {
        let mut at = head;
        std::iter::from_fn(move || {
            while at != NONE {
                let (end, next) = look(&self.edges[at as usize]);
                at = next;
                if end != NONE {
                    return Some(end);
                }
            }
            None
        })
    }

    /// First edge of the dependencies, for a walk that changes steps on the way.
    pub fn first_dep(&self, step: u32) -> u32 {
        self.step(step).deps
    }

    /// The dependency of an edge ([`NONE`] if it is done) and the next edge.
    pub fn dep_at(&self, edge: u32) -> (u32, u32) {
        let edge = &self.edges[edge as usize];
        (edge.to, edge.next_dep)
    }

    /// Cuts every dependent loose, because `step` is done or doomed: their `missing` shrinks. Calls `each` with
    /// every living dependent; returns the number of edges walked.
    pub fn cut_rdeps(&mut self, step: u32, mut each: impl FnMut(&mut Step, u32)) -> u32 {
        let mut walked = 0;
        let mut at = self.step(step).rdeps;
        while at != NONE {
            let Edge {
                from, next_rdep, ..
            } = self.edges[at as usize];
            if from == NONE {
                self.free_edge(at);
            } else {
                self.edges[at as usize].to = NONE;
                let dependent = self.step_mut(from);
                assert!(dependent.missing > 0, "BUG: a dependent waits for nothing");
                dependent.missing -= 1;
                each(dependent, from);
            }
            walked += 1;
            at = next_rdep;
        }
        let slot = self.step_mut(step);
        slot.rdeps = NONE;
        slot.rdeps_live = 0;
        slot.rdeps_cut = 0;
        walked
    }

    /// Lets go of every dependency. Those that nobody wants any more are added to `unwanted`; returns the number
    /// of edges walked.
    pub fn cut_deps(&mut self, step: u32, unwanted: &mut Vec<u32>) -> u32 {
        let mut walked = 0;
        let mut at = self.step(step).deps;
        while at != NONE {
            let Edge { to, next_dep, .. } = self.edges[at as usize];
            if to == NONE {
                self.free_edge(at);
            } else {
                self.edges[at as usize].from = NONE;
                let awaited = self.step_mut(to);
                awaited.rdeps_live -= 1;
                awaited.rdeps_cut += 1;
                if awaited.rdeps_cut > awaited.rdeps_live + 8 {
                    self.sweep_rdeps(to);
                }
                if !self.is_wanted(to) {
                    unwanted.push(to);
                }
            }
            walked += 1;
            at = next_dep;
        }
        let slot = self.step_mut(step);
        slot.deps = NONE;
        slot.missing = 0;
        walked
    }

    /// Takes the cut edges out of a list of dependents, keeping its order.
    fn sweep_rdeps(&mut self, step: u32) {
        let mut at = self.step(step).rdeps;
        let mut last = NONE;
        while at != NONE {
            let Edge {
                from, next_rdep, ..
            } = self.edges[at as usize];
            if from == NONE {
                if last == NONE {
                    self.step_mut(step).rdeps = next_rdep;
                } else {
                    self.edges[last as usize].next_rdep = next_rdep;
                }
                self.free_edge(at);
            } else {
                last = at;
            }
            at = next_rdep;
        }
        self.step_mut(step).rdeps_cut = 0;
    }
}
