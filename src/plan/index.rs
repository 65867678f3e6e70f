//! The runnable steps, ordered so that the best one for a machine is found without a scan.
//!
//! Steps fall into classes (platform, required features, prefer-local). Each class has a heap per jobset, ordered
//! by the static part of Hydra's key, and a step lies in the heap of each of its jobsets. Shares change all the
//! time and lie in no heap: the heads are compared by the full key, each with the share of the heap's jobset. That
//! is exact: in the heap of the best step's lowest-share jobset, whatever came before it would have at least the
//! same global priority, at most the same share, and a better rest, and so be better. In the heaps of its other
//! jobsets a step only looks worse than it is.
//!
//! Most heads are passed over by global priority and share alone, without a look at the heap.
//!
//! Entries are never searched for: a step that leaves, or whose key changed, has a new stamp, which makes its
//! entries stale. Stale heads are popped, and a heap more than half stale is built anew.
//!
//! Does not know machines beyond the kinds' capabilities, and does not change steps.

use std::cmp::Ordering;
use std::collections::BinaryHeap;

use hashbrown::HashTable;

use super::event::StepSpec;
use super::graph::{State, Step};
use super::machines::Kind;
use super::shares::{Jobsets, NO_JOBSET};
use crate::base::bits::Bits;
use crate::base::hash::hash_str;
use crate::base::prefetch;
use crate::base::random::mix;
use crate::model::Millis;

/// Classes nobody uses are forgotten after this time, once there are many.
const CLASS_IDLE_MS: u64 = 24 * 3_600_000;
const CLASSES_KEPT: usize = 256;
/// Entries at the top of a heap, whose steps are fetched before they are compared.
const HEADS_FETCHED: usize = 7;
/// Heaps smaller than this are not worth building anew.
const HEAP_SMALL: usize = 32;

#[derive(Clone, Copy)]
struct Entry {
    global: i32,
    local: i32,
    rdeps: u32,
    lowest: i32,
    step: u32,
    stamp: u32,
}

impl Entry {
    fn is_fresh(&self, steps: &[Step]) -> bool {
        steps[self.step as usize].stamp == self.stamp
    }
}

/// Greater is better. The number of required features is the same in all of a class.
impl Ord for Entry {
    fn cmp(&self, other: &Entry) -> Ordering {
        (self.global.cmp(&other.global))
            .then(self.local.cmp(&other.local))
            .then(self.rdeps.cmp(&other.rdeps))
            .then(other.lowest.cmp(&self.lowest))
            .then(other.step.cmp(&self.step))
    }
}

impl PartialOrd for Entry {
    fn partial_cmp(&self, other: &Entry) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for Entry {
    fn eq(&self, other: &Entry) -> bool {
        self.cmp(other) == Ordering::Equal
    }
}

impl Eq for Entry {}

#[derive(Default)]
struct Heap {
    entries: BinaryHeap<Entry>,
    /// Entries that are not stale.
    fresh: u32,
    /// Place in [`Class::active`], if there are entries.
    active_at: u32,
}

/// Steps that the same machines can do.
pub struct Class {
    pub platform: Box<str>,
    /// Sorted.
    pub features: Vec<Box<str>>,
    pub prefer_local: bool,
    /// Hydra's name: `platform:feature,feature`, with `local` among the features.
    pub system_type: Box<str>,
    /// Steps of the class, in any state.
    pub steps: u32,
    pub runnable: u32,
    pub running: u32,
    /// Steps of an emergency that are needed and not started.
    pub urgent_waiting: u32,
    /// Of these the runnable ones.
    pub urgent_runnable: u32,
    /// Sum of the runnable steps' `since`.
    since_sum: u64,
    pub last_active: Millis,
    /// Until when some machine had what it takes; `None` is never.
    pub supported_until: Option<Millis>,
    /// By jobset.
    heaps: Vec<Heap>,
    /// The heaps that are not empty, in no order.
    active: Vec<Active>,
}

#[derive(Clone, Copy)]
struct Active {
    jobset: u32,
    /// Global priority of the heap's head, stale or not; a stale head is at least as good as those below.
    global: i32,
}

impl Class {
    fn is_of(&self, spec: &StepSpec) -> bool {
        self.platform == spec.platform
            && self.prefer_local == spec.prefer_local
            && self.features == spec.required_features
    }

    /// Seconds that the runnable steps have waited, summed. `now`: seconds since the plan began.
    pub fn wait_secs(&self, now: u32) -> u64 {
        (u64::from(self.runnable) * u64::from(now)).saturating_sub(self.since_sum)
    }
}

/// The global priority of what an emergency wants; no build's own is as high.
pub const URGENT: i32 = i32::MAX;

/// See the module.
#[derive(Default)]
pub struct Index {
    pub classes: Vec<Class>,
    /// Steps with this number are wanted by an emergency. It changes when an emergency ends, so that the others' numbers
    /// mean nothing any more.
    pub emergency: u16,
    by_spec: HashTable<u32>,
    /// Classes with runnable steps.
    pub runnable: Bits,
    pub runnable_steps: u32,
}

fn class_hash(platform: &str, features: &[Box<str>], prefer_local: bool) -> u64 {
    let features = features.iter().map(|feature| hash_str(feature));
    features.fold(
        hash_str(platform) ^ u64::from(prefer_local),
        |hash, feature| mix(hash) ^ feature,
    )
}

impl Index {
    /// The class of a step, and whether it is new; bits of kinds that support a new one are set.
    pub fn class_of(&mut self, spec: &StepSpec, kinds: &mut [Kind], now: Millis) -> (u32, bool) {
        let hash = class_hash(&spec.platform, &spec.required_features, spec.prefer_local);
        let same = |&class: &u32| self.classes[class as usize].is_of(spec);
        if let Some(&class) = self.by_spec.find(hash, same) {
            return (class, false);
        }
        let mut names: Vec<&str> = spec.required_features.iter().map(|name| &**name).collect();
        if spec.prefer_local && !names.contains(&"local") {
            names.push("local");
            names.sort_unstable();
        }
        let mut system_type = spec.platform.to_string();
        if !names.is_empty() {
            system_type.push(':');
            system_type.push_str(&names.join(","));
        }
        let class = Class {
            platform: spec.platform.clone(),
            features: spec.required_features.clone(),
            prefer_local: spec.prefer_local,
            system_type: system_type.into(),
            steps: 0,
            runnable: 0,
            running: 0,
            urgent_waiting: 0,
            urgent_runnable: 0,
            since_sum: 0,
            last_active: now,
            supported_until: None,
            heaps: Vec::new(),
            active: Vec::new(),
        };
        let number = match self.unused(now) {
            Some(number) => {
                let old = &self.classes[number as usize];
                let hash = class_hash(&old.platform, &old.features, old.prefer_local);
                match self.by_spec.find_entry(hash, |&other| other == number) {
                    Ok(entry) => {
                        entry.remove();
                    }
                    Err(_) => panic!("BUG: a class is not in its table"),
                }
                self.classes[number as usize] = class;
                number
            }
            None => {
                self.classes.push(class);
                self.classes.len() as u32 - 1
            }
        };
        let classes = &self.classes;
        self.by_spec.insert_unique(hash, number, |&class| {
            let class = &classes[class as usize];
            class_hash(&class.platform, &class.features, class.prefer_local)
        });
        for kind in kinds {
            let class = &mut self.classes[number as usize];
            let supports = kind.supports(class);
            kind.classes.set(number, supports);
            if supports {
                let until = if kind.machines > 0 {
                    now
                } else {
                    kind.last_seen
                };
                class.supported_until = class.supported_until.max(Some(until));
            }
        }
        (number, true)
    }

    /// A class that can be given up for a new one.
    fn unused(&self, now: Millis) -> Option<u32> {
        if self.classes.len() < CLASSES_KEPT {
            return None;
        }
        let idle = |class: &Class| class.steps == 0 && now.since(class.last_active) > CLASS_IDLE_MS;
        self.classes.iter().position(idle).map(|at| at as u32)
    }

    /// A step has become runnable, or has a new key after [`Index::leave`].
    pub fn enter(&mut self, number: u32, steps: &[Step], jobsets: &Jobsets) {
        let step = &steps[number as usize];
        assert!(
            step.state == State::Runnable,
            "BUG: only runnable steps are in the index"
        );
        let urgent = self.is_urgent(step);
        let class = &mut self.classes[step.class as usize];
        class.runnable += 1;
        class.urgent_runnable += u32::from(urgent);
        class.since_sum += u64::from(step.since);
        self.runnable_steps += 1;
        if class.runnable == 1 {
            self.runnable.set(step.class, true);
        }
        let entry = Entry {
            global: if urgent { URGENT } else { step.global },
            local: step.local,
            rdeps: step.rdeps_seen,
            lowest: step.lowest,
            step: number,
            stamp: step.stamp,
        };
        for &jobset in heaps_of(jobsets.members(step.set)) {
            if class.heaps.len() <= jobset as usize {
                class.heaps.resize_with(jobset as usize + 1, Heap::default);
            }
            let heap = &mut class.heaps[jobset as usize];
            if heap.entries.is_empty() {
                heap.active_at = class.active.len() as u32;
                class.active.push(Active {
                    jobset,
                    global: entry.global,
                });
            } else {
                let active = &mut class.active[heap.active_at as usize];
                active.global = active.global.max(entry.global);
            }
            heap.entries.push(entry);
            heap.fresh += 1;
        }
    }

    /// A step stops being runnable, or is about to change its key. Its stamp is already a new one.
    pub fn leave(&mut self, number: u32, steps: &[Step], jobsets: &Jobsets) {
        let step = &steps[number as usize];
        let urgent = self.is_urgent(step);
        let class = &mut self.classes[step.class as usize];
        assert!(class.runnable > 0, "BUG: a runnable step is not counted");
        class.runnable -= 1;
        class.urgent_runnable -= u32::from(urgent);
        class.since_sum -= u64::from(step.since);
        self.runnable_steps -= 1;
        if class.runnable == 0 {
            self.runnable.set(step.class, false);
        }
        for &jobset in heaps_of(jobsets.members(step.set)) {
            let heap = &mut class.heaps[jobset as usize];
            heap.fresh -= 1;
            if heap.entries.len() > HEAP_SMALL && heap.entries.len() > 2 * heap.fresh as usize {
                let mut entries = std::mem::take(&mut heap.entries).into_vec();
                entries.retain(|entry| entry.is_fresh(steps));
                entries.shrink_to(2 * entries.len());
                heap.entries = entries.into();
                class.look_at(jobset);
            }
        }
    }

    /// Whether an emergency wants a step. No step has the number 0 of an index without emergencies yet.
    pub fn is_urgent(&self, step: &Step) -> bool {
        self.emergency != 0 && step.emergency == self.emergency
    }

    /// The best runnable step among the classes in `mask`, less those in `without`, that is not held back: of jobsets
    /// that have reached their cap, or if only urgent ones may start, none but the urgent.
    pub fn best(
        &mut self,
        (mask, without): (&Bits, Option<&Bits>),
        urgent_only: bool,
        steps: &[Step],
        jobsets: &Jobsets,
    ) -> Option<u32> {
        let mut best: Option<(Entry, f64, usize)> = None;
        for number in self.runnable.meeting(mask, without) {
            let class = &mut self.classes[number as usize];
            let features = class.features.len();
            let mut at = 0;
            while let Some(&Active { jobset, global }) = class.active.get(at) {
                if (urgent_only || jobsets.is_full(jobset)) && global != URGENT {
                    at += 1;
                    continue;
                }
                let share = jobsets.share_used(jobset);
                if let Some((entry, best_share, best_features)) = &best {
                    if global < entry.global || (global == entry.global && share > *best_share) {
                        at += 1;
                        continue;
                    }
                    let head = class.heaps[jobset as usize].entries.peek();
                    let beaten = |head: &Entry| {
                        let best = (entry, *best_share, *best_features);
                        compare((head, share, features), best) != Ordering::Greater
                    };
                    if head.is_some_and(beaten) {
                        at += 1;
                        continue;
                    }
                }
                let entries = &mut class.heaps[jobset as usize].entries;
                match entries.peek() {
                    Some(head) if head.is_fresh(steps) => {
                        best = Some((*head, share, features));
                        // One of these is likely to be the head when this one has started.
                        for next in entries.as_slice().iter().take(HEADS_FETCHED).skip(1) {
                            prefetch::item(steps, next.step as usize);
                        }
                        at += 1;
                    }
                    // Stale: look at this heap again, if it has something left.
                    _ => {
                        entries.pop();
                        class.look_at(jobset);
                    }
                }
            }
        }
        best.map(|(entry, ..)| entry.step)
    }

    /// The classes with a runnable step that no cap holds back.
    pub fn startable(&self, jobsets: &Jobsets) -> Bits {
        let mut found = Bits::default();
        for number in self.runnable.meeting(&self.runnable, None) {
            let class = &self.classes[number as usize];
            let has_room = |active: &Active| {
                !jobsets.is_full(active.jobset) && class.heaps[active.jobset as usize].fresh > 0
            };
            if class.urgent_runnable > 0 || class.active.iter().any(has_room) {
                found.set(number, true);
            }
        }
        found
    }

    /// The classes of which this is true.
    pub fn classes_with(&self, what: impl Fn(&Class) -> bool) -> Bits {
        let mut found = Bits::default();
        for (number, class) in self.classes.iter().enumerate() {
            if what(class) {
                found.set(number as u32, true);
            }
        }
        found
    }

    /// Runnable steps of a class, each at least once, in no order.
    pub fn runnable_in<'a>(
        &'a self,
        class: u32,
        steps: &'a [Step],
    ) -> impl Iterator<Item = u32> + 'a {
        let class = &self.classes[class as usize];
        let entries = class
            .active
            .iter()
            .flat_map(|active| class.heaps[active.jobset as usize].entries.iter());
        entries
            .filter(|entry| entry.is_fresh(steps))
            .map(|entry| entry.step)
    }

    /// For the invariants: every heap counts its fresh entries right; returns how many there are in all.
    pub fn check(&self, steps: &[Step]) -> u64 {
        let mut all = 0;
        for (number, class) in self.classes.iter().enumerate() {
            let mut active = 0;
            for (jobset, heap) in class.heaps.iter().enumerate() {
                let fresh = heap
                    .entries
                    .iter()
                    .filter(|entry| entry.is_fresh(steps))
                    .count();
                assert_eq!(
                    fresh, heap.fresh as usize,
                    "BUG: fresh entries of class {number}, jobset {jobset}"
                );
                if !heap.entries.is_empty() {
                    active += 1;
                    let listed = class.active[heap.active_at as usize];
                    let head = heap.entries.peek().map(|head| head.global);
                    assert_eq!(
                        listed.jobset, jobset as u32,
                        "BUG: an active heap is not listed"
                    );
                    assert_eq!(
                        Some(listed.global),
                        head,
                        "BUG: the priority of a heap's head"
                    );
                }
                all += fresh as u64;
            }
            assert_eq!(
                active,
                class.active.len(),
                "BUG: heaps listed as active in class {number}"
            );
            assert_eq!(
                self.runnable.has(number as u32),
                class.runnable > 0,
                "BUG: bit of class {number}"
            );
        }
        all
    }
}

impl Class {
    /// A heap has lost entries: notes its new head, or that it has none.
    fn look_at(&mut self, jobset: u32) {
        let heap = &self.heaps[jobset as usize];
        let at = heap.active_at;
        if let Some(head) = heap.entries.peek() {
            self.active[at as usize].global = head.global;
            return;
        }
        self.active.swap_remove(at as usize);
        if let Some(&moved) = self.active.get(at as usize) {
            self.heaps[moved.jobset as usize].active_at = at;
        }
    }
}

/// The jobsets in whose heaps a step of these jobsets lies.
pub fn heaps_of(members: &[u32]) -> &[u32] {
    if members.is_empty() {
        &[NO_JOBSET]
    } else {
        members
    }
}

/// Hydra's order (spec 4.2) of heads of different heaps; greater is better.
fn compare(
    (a, a_share, a_features): (&Entry, f64, usize),
    (b, b_share, b_features): (&Entry, f64, usize),
) -> Ordering {
    (a.global.cmp(&b.global))
        .then(b_share.total_cmp(&a_share))
        .then(a.local.cmp(&b.local))
        .then(a_features.cmp(&b_features))
        .then(a.rdeps.cmp(&b.rdeps))
        .then(b.lowest.cmp(&a.lowest))
        .then(b.step.cmp(&a.step))
}
