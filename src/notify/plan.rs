//! What is delivered next: order, parallelism, backoff, pauses, giving up. Pure: no I/O, no clock; `now` is a parameter.
//!
//! **Order.** A delivery has a lane for each build it is about (per target), and one for each status that several builds share.
//! Only the head of all its lanes may run, so what concerns one build reaches a target in the order of the events; everything
//! else runs side by side.
//!
//! **One slow target costs its own calls only.** While there are other targets one begins with a single call at a time, gets one
//! more with each that succeeds, never has all the threads, and is back at one when a call fails. One that fails again and again
//! is left alone for growing pauses.
//!
//! **Superseding.** To a target that shows the *state* of a build (a commit status) an old state that could not be delivered
//! is not worth anything once a newer one is there: it is dropped, and the newer one need not wait for it.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;

use crate::model::Millis;

/// Deliveries of one target that are kept in memory; the rest waits in the ledger.
pub const WAITING_MAX: usize = 20_000;
/// The pause after the n-th failure is 2^n s, as in Hydra, up to 2^this.
const BACKOFF_SHIFT_MAX: u32 = 10;
/// A delivery is given up after so many tries, as in Hydra.
pub const ATTEMPTS_MAX: u32 = 102;
/// Failures in a row after which a target is paused.
const FAILURES_MAX: u32 = 5;
/// The first pause of a target and the longest, milliseconds.
const PAUSE_MS: u64 = 5_000;
const PAUSE_MS_MAX: u64 = 300_000;
/// What a server asks for with `Retry-After` is followed up to this, milliseconds.
pub const RETRY_AFTER_MS_MAX: u64 = 3_600_000;

/// A target's number, in the order of the configuration.
pub type Target = usize;

/// One event for one target.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Key {
    pub event: i64,
    pub target: Target,
}

/// A delivery that waits.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Waiting {
    pub key: Key,
    /// The builds it is about: a lane each.
    pub builds: Vec<i32>,
    /// Statuses that it shares with other builds: a lane each.
    pub statuses: Vec<Arc<str>>,
    /// When the event was.
    pub at: Millis,
    /// Tries so far.
    pub attempts: u32,
    pub due: Millis,
}

/// Within one of these the order of the events is kept.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
enum Lane {
    Build(i32),
    Status(Arc<str>),
}

impl Waiting {
    fn lanes(&self) -> impl Iterator<Item = Lane> + '_ {
        let builds = self.builds.iter().map(|build| Lane::Build(*build));
        builds.chain(self.statuses.iter().cloned().map(Lane::Status))
    }
}

/// How a call ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Ended {
    Delivered,
    /// Nothing was tried: it is too early, by so many milliseconds.
    Postponed {
        pause_ms: u64,
    },
    /// Another try may help. With the server's own wish for a pause, milliseconds.
    Failed {
        retry_after_ms: Option<u64>,
    },
    /// No other try will help; says nothing about the target's health.
    Refused,
}

/// What becomes of a delivery.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Decision {
    Delivered {
        attempts: u32,
    },
    Retry {
        attempts: u32,
        due: Millis,
    },
    /// As if it had not been begun.
    Postponed,
    GiveUp {
        attempts: u32,
    },
    Superseded {
        attempts: u32,
    },
}

/// What there is to know of a target beforehand.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Manner {
    /// A newer state makes an older one worthless.
    pub supersedes: bool,
}

#[derive(Debug)]
struct Item {
    waiting: Waiting,
    running: bool,
}

#[derive(Debug, Default)]
struct Lanes {
    manner: Manner,
    /// Not configured any more.
    gone: bool,
    items: BTreeMap<i64, Item>,
    by_lane: BTreeMap<Lane, BTreeSet<i64>>,
    ready: BTreeSet<i64>,
    later: BTreeSet<(Millis, i64)>,
    running: usize,
    /// Calls it may have at once for all that is known of it, if there are other targets.
    window: usize,
    failures: u32,
    paused_until: Millis,
}

/// All deliveries in memory.
#[derive(Debug)]
pub struct Plan {
    threads: usize,
    age_ms_max: u64,
    targets: Vec<Lanes>,
    /// Who is asked first next time.
    turn: VecDeque<Target>,
}

impl Plan {
    /// `age_ms_max`: a delivery that failed is given up when its event is older than this.
    pub fn new(threads: usize, age_ms_max: u64, targets: &[Manner]) -> Plan {
        Plan {
            threads: threads.max(1),
            age_ms_max,
            targets: targets.iter().map(Lanes::new).collect(),
            turn: (0..targets.len()).collect(),
        }
    }

    /// The configuration has changed. `targets`: all of them, those known so far first; `None`: not configured any more. What
    /// waits for those that are is tried at once, since that may be what was changed. Returns what was waiting for the others.
    pub fn configure(
        &mut self,
        now: Millis,
        age_ms_max: u64,
        targets: &[Option<Manner>],
    ) -> Vec<Key> {
        self.age_ms_max = age_ms_max;
        let mut forgotten = Vec::new();
        for (target, manner) in targets.iter().enumerate() {
            if target >= self.targets.len() {
                self.targets.push(Lanes::new(&Manner::default()));
                self.turn.push_back(target);
            }
            let lanes = &mut self.targets[target];
            lanes.gone = manner.is_none();
            match manner {
                Some(manner) => {
                    lanes.manner = *manner;
                    lanes.hasten(now);
                }
                None => forgotten.extend(self.forget_idle_of(target)),
            }
        }
        forgotten
    }

    /// Whether another delivery to this target fits into memory.
    pub fn has_room(&self, target: Target) -> bool {
        self.targets[target].items.len() < WAITING_MAX
    }

    /// Deliveries of this target in memory.
    pub fn waiting(&self, target: Target) -> usize {
        self.targets[target].items.len()
    }

    pub fn running(&self) -> usize {
        self.targets.iter().map(|lanes| lanes.running).sum()
    }

    /// Whether something in memory was never tried.
    pub fn has_untried(&self) -> bool {
        let untried = |item: &Item| item.running || item.waiting.attempts == 0;
        self.targets
            .iter()
            .any(|lanes| lanes.items.values().any(untried))
    }

    pub fn contains(&self, key: Key) -> bool {
        self.targets[key.target].items.contains_key(&key.event)
    }

    /// Takes a delivery in; one that is there already stays as it is. Returns those that it makes worthless.
    pub fn add(&mut self, now: Millis, waiting: Waiting) -> Vec<(Key, Decision)> {
        let key = waiting.key;
        let lanes = &mut self.targets[key.target];
        if lanes.items.contains_key(&key.event) {
            return Vec::new();
        }
        for lane in waiting.lanes() {
            lanes.by_lane.entry(lane).or_default().insert(key.event);
        }
        let running = false;
        let item = Item { waiting, running };
        lanes.items.insert(key.event, item);
        let old: Vec<i64> = lanes.before(key.event);
        let mut worthless = Vec::new();
        for event in old {
            let tried = lanes.items[&event].waiting.attempts;
            if tried > 0 && !lanes.items[&event].running && lanes.is_superseded(event) {
                lanes.remove(now, event);
                let target = key.target;
                let decision = Decision::Superseded { attempts: tried };
                worthless.push((Key { event, target }, decision));
            }
        }
        lanes.place(now, key.event);
        worthless
    }

    /// Forgets everything that is not running; says what that was.
    pub fn forget_idle(&mut self) -> Vec<Key> {
        (0..self.targets.len())
            .flat_map(|target| self.forget_idle_of(target))
            .collect()
    }

    fn forget_idle_of(&mut self, target: Target) -> Vec<Key> {
        let lanes = &mut self.targets[target];
        let idle = lanes.items.iter().filter(|(_, item)| !item.running);
        let idle: Vec<i64> = idle.map(|(event, _)| *event).collect();
        for event in &idle {
            lanes.remove(Millis(0), *event);
        }
        idle.into_iter()
            .map(|event| Key { event, target })
            .collect()
    }

    /// The next delivery to be made, if one may be made now; it counts as running from here on.
    pub fn next(&mut self, now: Millis) -> Option<(Key, u32)> {
        if self.running() >= self.threads {
            return None;
        }
        let cap = self.cap();
        for at in 0..self.turn.len() {
            let target = self.turn[at];
            let lanes = &mut self.targets[target];
            lanes.wake(now);
            if lanes.is_full(cap) || lanes.paused_until > now {
                continue;
            }
            let Some(event) = lanes.ready.pop_first() else {
                continue;
            };
            lanes.running += 1;
            let item = lanes
                .items
                .get_mut(&event)
                .expect("BUG: ready but not there");
            item.running = true;
            let attempts = item.waiting.attempts;
            self.turn.remove(at);
            self.turn.push_back(target);
            return Some((Key { event, target }, attempts));
        }
        None
    }

    /// Calls that one target may have at once.
    fn cap(&self) -> Cap {
        match self.targets.iter().filter(|lanes| !lanes.gone).count() {
            0 | 1 => Cap::Alone(self.threads),
            _ => Cap::OneOfMany((self.threads - 1).max(1)),
        }
    }

    /// A call has ended: what becomes of the delivery.
    pub fn ended(&mut self, now: Millis, key: Key, ended: Ended) -> Decision {
        let age_ms_max = self.age_ms_max;
        let lanes = &mut self.targets[key.target];
        lanes.running -= 1;
        let item = lanes
            .items
            .get_mut(&key.event)
            .expect("BUG: ended but not there");
        assert!(item.running, "BUG: ended but not running");
        item.running = false;
        if let Ended::Postponed { pause_ms } = ended {
            lanes.paused_until = lanes.paused_until.max(now + pause_ms);
            lanes.place(now, key.event);
            return Decision::Postponed;
        }
        item.waiting.attempts += 1;
        let attempts = item.waiting.attempts;
        let age = now.since(item.waiting.at);
        let retry_after_ms = match ended {
            Ended::Delivered => {
                lanes.failures = 0;
                lanes.window = (lanes.window + 1).min(self.threads);
                lanes.remove(now, key.event);
                return Decision::Delivered { attempts };
            }
            Ended::Refused => {
                lanes.remove(now, key.event);
                return Decision::GiveUp { attempts };
            }
            Ended::Failed { retry_after_ms } => retry_after_ms.map(|ms| ms.min(RETRY_AFTER_MS_MAX)),
            Ended::Postponed { .. } => unreachable!("BUG: dealt with above"),
        };
        lanes.failures += 1;
        lanes.window = 1;
        if lanes.failures >= FAILURES_MAX {
            let shift = (lanes.failures - FAILURES_MAX).min(16);
            let pause = (PAUSE_MS << shift).min(PAUSE_MS_MAX);
            lanes.paused_until = lanes.paused_until.max(now + pause);
        }
        if let Some(ms) = retry_after_ms {
            lanes.paused_until = lanes.paused_until.max(now + ms);
        }
        if attempts >= ATTEMPTS_MAX || age > age_ms_max {
            lanes.remove(now, key.event);
            return Decision::GiveUp { attempts };
        }
        if lanes.is_superseded(key.event) {
            lanes.remove(now, key.event);
            return Decision::Superseded { attempts };
        }
        let pause = 1_000u64 << attempts.min(BACKOFF_SHIFT_MAX);
        let due = now + pause.max(retry_after_ms.unwrap_or(0));
        let item = lanes.items.get_mut(&key.event).expect("BUG: still there");
        item.waiting.due = due;
        lanes.place(now, key.event);
        Decision::Retry { attempts, due }
    }

    /// When [`Plan::next`] is worth asking again although nothing ended or came; `None`: never.
    pub fn wake_at(&self) -> Option<Millis> {
        let of = |lanes: &Lanes| {
            let first = match lanes.ready.is_empty() {
                false => Some(Millis(0)),
                true => lanes.later.first().map(|(due, _)| *due),
            };
            first.map(|due| due.max(lanes.paused_until))
        };
        // One with all the calls it may have is asked again when one of them ends.
        let cap = self.cap();
        let free = self.targets.iter().filter(|lanes| !lanes.is_full(cap));
        free.filter_map(of).min()
    }

    /// Until when a target is left alone; `None` if it is not.
    pub fn paused_until(&self, target: Target, now: Millis) -> Option<Millis> {
        Some(self.targets[target].paused_until).filter(|until| *until > now)
    }
}

/// How many calls a target may have at once.
#[derive(Clone, Copy)]
enum Cap {
    /// There is no other target to be kept waiting.
    Alone(usize),
    OneOfMany(usize),
}

impl Lanes {
    fn new(manner: &Manner) -> Lanes {
        Lanes {
            manner: *manner,
            window: 1,
            ..Lanes::default()
        }
    }

    /// Whether it has all the calls it may have; one that fails again and again has one at a time.
    fn is_full(&self, cap: Cap) -> bool {
        let max = match cap {
            _ if self.failures >= FAILURES_MAX => 1,
            Cap::Alone(threads) => threads,
            Cap::OneOfMany(threads) => threads.min(self.window),
        };
        self.running >= max
    }

    /// What waits for a time need not wait any more.
    fn hasten(&mut self, now: Millis) {
        self.failures = 0;
        self.paused_until = Millis(0);
        for item in self.items.values_mut() {
            item.waiting.due = item.waiting.due.min(now);
        }
        let later = std::mem::take(&mut self.later);
        self.ready.extend(later.into_iter().map(|(_, event)| event));
    }

    /// What is in one of its lanes before it.
    fn before(&self, event: i64) -> Vec<i64> {
        if !self.manner.supersedes {
            return Vec::new();
        }
        let builds = &self.items[&event].waiting.builds;
        let before = builds
            .iter()
            .filter_map(|build| self.by_lane.get(&Lane::Build(*build)))
            .flat_map(|events| events.range(..event).copied());
        let before: BTreeSet<i64> = before.collect();
        before.into_iter().collect()
    }

    /// A newer one tells of all the builds that it tells of.
    fn is_superseded(&self, event: i64) -> bool {
        let builds = &self.items[&event].waiting.builds;
        let first = builds.first().map(|build| Lane::Build(*build));
        let Some(first) = first.and_then(|lane| self.by_lane.get(&lane)) else {
            return false;
        };
        self.manner.supersedes
            && first.range(event + 1..).any(|newer| {
                let newer = &self.items[newer].waiting.builds;
                builds.iter().all(|build| newer.contains(build))
            })
    }

    fn is_head(&self, event: i64) -> bool {
        self.items[&event]
            .waiting
            .lanes()
            .all(|lane| self.by_lane.get(&lane).and_then(BTreeSet::first) == Some(&event))
    }

    /// Puts a delivery where it belongs: among the ready ones, those that wait for a time, or neither.
    fn place(&mut self, now: Millis, event: i64) {
        if self.items[&event].running || !self.is_head(event) {
            return;
        }
        match self.items[&event].waiting.due {
            due if due > now => self.later.insert((due, event)),
            _ => self.ready.insert(event),
        };
    }

    fn wake(&mut self, now: Millis) {
        while let Some((due, event)) = self.later.first().copied().filter(|(due, _)| *due <= now) {
            self.later.remove(&(due, event));
            self.ready.insert(event);
        }
    }

    fn remove(&mut self, now: Millis, event: i64) {
        let item = self.items.remove(&event).expect("BUG: removed twice");
        self.ready.remove(&event);
        self.later.remove(&(item.waiting.due, event));
        for lane in item.waiting.lanes() {
            let Some(events) = self.by_lane.get_mut(&lane) else {
                continue;
            };
            events.remove(&event);
            match events.first().copied() {
                Some(head) => self.place(now, head),
                None => {
                    self.by_lane.remove(&lane);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::random::Random;

    const DAY_MS: u64 = 86_400_000;

    fn plan(threads: usize, targets: usize) -> Plan {
        Plan::new(threads, DAY_MS, &vec![Manner::default(); targets])
    }

    fn waiting(event: i64, target: Target, builds: &[i32]) -> Waiting {
        Waiting {
            key: Key { event, target },
            builds: builds.to_vec(),
            statuses: Vec::new(),
            at: Millis(0),
            attempts: 0,
            due: Millis(0),
        }
    }

    fn add(plan: &mut Plan, event: i64, target: Target, builds: &[i32]) {
        assert!(plan
            .add(Millis(0), waiting(event, target, builds))
            .is_empty());
    }

    fn next(plan: &mut Plan, now: u64) -> Option<i64> {
        plan.next(Millis(now)).map(|(key, _)| key.event)
    }

    fn fail(plan: &mut Plan, now: u64, event: i64) -> Decision {
        let retry_after_ms = None;
        plan.ended(
            Millis(now),
            Key { event, target: 0 },
            Ended::Failed { retry_after_ms },
        )
    }

    #[test]
    fn s6_order_holds_within_a_build_and_nowhere_else() {
        let mut plan = plan(8, 1);
        add(&mut plan, 1, 0, &[10]);
        add(&mut plan, 2, 0, &[10, 11]);
        add(&mut plan, 3, 0, &[12]);
        add(&mut plan, 4, 0, &[11]);
        assert_eq!(next(&mut plan, 0), Some(1));
        assert_eq!(next(&mut plan, 0), Some(3));
        assert_eq!(next(&mut plan, 0), None);
        let key = |event| Key { event, target: 0 };
        plan.ended(Millis(0), key(1), Ended::Delivered);
        assert_eq!(next(&mut plan, 0), Some(2));
        assert_eq!(next(&mut plan, 0), None);
        plan.ended(Millis(0), key(2), Ended::Delivered);
        assert_eq!(next(&mut plan, 0), Some(4));
    }

    #[test]
    fn backoff_doubles_to_a_cap_and_then_it_is_given_up() {
        let mut plan = Plan::new(1, 10 * DAY_MS, &[Manner::default()]);
        add(&mut plan, 1, 0, &[10]);
        let mut now = 0;
        let mut pauses = Vec::new();
        loop {
            now = now.max(plan.wake_at().expect("it waits").0);
            assert_eq!(next(&mut plan, now), Some(1));
            match fail(&mut plan, now, 1) {
                Decision::Retry { due, .. } => pauses.push((due.0 - now) / 1_000),
                decision => {
                    assert_eq!(
                        decision,
                        Decision::GiveUp {
                            attempts: ATTEMPTS_MAX
                        }
                    );
                    break;
                }
            }
        }
        assert_eq!(pauses[..4], [2, 4, 8, 16]);
        assert!(pauses[9..].iter().all(|pause| *pause == 1_024));
        assert_eq!(plan.wake_at(), None);
    }

    #[test]
    fn what_is_too_old_is_given_up_after_a_try() {
        let mut plan = plan(1, 1);
        add(&mut plan, 1, 0, &[10]);
        assert_eq!(next(&mut plan, DAY_MS + 1), Some(1));
        assert_eq!(
            fail(&mut plan, DAY_MS + 1, 1),
            Decision::GiveUp { attempts: 1 }
        );
    }

    #[test]
    fn a_target_never_has_all_threads_and_pauses_when_it_fails() {
        let mut plan = plan(2, 2);
        for event in 1..20 {
            add(&mut plan, event, 0, &[event as i32]);
        }
        add(&mut plan, 50, 1, &[1]);
        assert_eq!(next(&mut plan, 0), Some(1));
        // The other thread is not for this target, however much it has to do.
        assert_eq!(next(&mut plan, 0), Some(50));
        // Nothing to wake up for: an end will do.
        assert_eq!(plan.wake_at(), None);
        plan.ended(
            Millis(0),
            Key {
                event: 50,
                target: 1,
            },
            Ended::Delivered,
        );
        assert_eq!(next(&mut plan, 0), None);
        for event in 1..=5 {
            fail(&mut plan, 0, event);
            if event < 5 {
                assert_eq!(next(&mut plan, 0), Some(event + 1));
            }
        }
        assert_eq!(next(&mut plan, 4_999), None);
        assert_eq!(plan.paused_until(0, Millis(0)), Some(Millis(5_000)));
        assert!(next(&mut plan, 5_000).is_some());
    }

    #[test]
    fn a_server_is_given_the_time_it_asks_for() {
        let mut plan = plan(2, 1);
        add(&mut plan, 1, 0, &[10]);
        add(&mut plan, 2, 0, &[11]);
        assert_eq!(next(&mut plan, 0), Some(1));
        let key = Key {
            event: 1,
            target: 0,
        };
        let retry_after_ms = Some(60_000);
        let decision = plan.ended(Millis(0), key, Ended::Failed { retry_after_ms });
        assert_eq!(
            decision,
            Decision::Retry {
                attempts: 1,
                due: Millis(60_000)
            }
        );
        assert_eq!(next(&mut plan, 59_999), None);
        assert_eq!(next(&mut plan, 60_000), Some(1));
    }

    #[test]
    fn s6_a_newer_state_supersedes_one_that_failed() {
        let manner = Manner { supersedes: true };
        let mut plan = Plan::new(2, DAY_MS, &[manner]);
        add(&mut plan, 1, 0, &[10]);
        add(&mut plan, 2, 0, &[11]);
        assert_eq!(next(&mut plan, 0), Some(1));
        assert_eq!(next(&mut plan, 0), Some(2));
        fail(&mut plan, 0, 1);
        // It failed before the newer one came.
        let worthless = plan.add(Millis(0), waiting(3, 0, &[10]));
        let key = Key {
            event: 1,
            target: 0,
        };
        assert_eq!(worthless, [(key, Decision::Superseded { attempts: 1 })]);
        // It fails after the newer one came.
        add(&mut plan, 4, 0, &[11, 12]);
        assert_eq!(fail(&mut plan, 0, 2), Decision::Superseded { attempts: 1 });
        assert_eq!(next(&mut plan, 0), Some(3));
        assert_eq!(next(&mut plan, 0), Some(4));
    }

    #[test]
    fn s6_a_pending_never_overtakes_a_success_also_of_another_build_with_the_same_status() {
        let mut plan = plan(4, 1);
        let status: Arc<str> = "p:s:job".into();
        for (event, build) in [(1, 10), (2, 11), (3, 12)] {
            let mut waiting = waiting(event, 0, &[build]);
            if event < 3 {
                waiting.statuses.push(status.clone());
            }
            assert!(plan.add(Millis(0), waiting).is_empty());
        }
        assert_eq!(next(&mut plan, 0), Some(1));
        assert_eq!(next(&mut plan, 0), Some(3), "another status");
        assert_eq!(next(&mut plan, 0), None);
        let key = Key {
            event: 1,
            target: 0,
        };
        plan.ended(Millis(0), key, Ended::Delivered);
        assert_eq!(next(&mut plan, 0), Some(2));
    }

    #[test]
    fn a_target_has_one_call_until_one_succeeded_and_again_after_one_failed() {
        let mut plan = plan(4, 2);
        for event in 1..20 {
            add(&mut plan, event, 0, &[event as i32]);
        }
        let key = |event| Key { event, target: 0 };
        assert_eq!(next(&mut plan, 0), Some(1));
        assert_eq!(next(&mut plan, 0), None);
        plan.ended(Millis(0), key(1), Ended::Delivered);
        assert_eq!(next(&mut plan, 0), Some(2));
        assert_eq!(next(&mut plan, 0), Some(3));
        assert_eq!(next(&mut plan, 0), None);
        for event in [2, 3] {
            plan.ended(Millis(0), key(event), Ended::Delivered);
        }
        // One of the four is left to the others, however well it does.
        for event in [4, 5, 6] {
            assert_eq!(next(&mut plan, 0), Some(event));
        }
        assert_eq!(next(&mut plan, 0), None);
        fail(&mut plan, 0, 4);
        plan.ended(Millis(0), key(5), Ended::Refused);
        assert_eq!(next(&mut plan, 0), None, "the sixth is under way");
        plan.ended(Millis(0), key(6), Ended::Refused);
        assert_eq!(next(&mut plan, 0), Some(7));
        assert_eq!(next(&mut plan, 0), None);
    }

    #[test]
    fn what_is_postponed_is_no_attempt_and_its_target_waits() {
        let mut plan = plan(2, 1);
        add(&mut plan, 1, 0, &[10]);
        add(&mut plan, 2, 0, &[11]);
        assert_eq!(next(&mut plan, 0), Some(1));
        let key = Key {
            event: 1,
            target: 0,
        };
        let pause_ms = 700;
        let decision = plan.ended(Millis(0), key, Ended::Postponed { pause_ms });
        assert_eq!(decision, Decision::Postponed);
        assert_eq!(plan.wake_at(), Some(Millis(700)));
        assert_eq!(next(&mut plan, 699), None);
        assert_eq!(plan.next(Millis(700)), Some((key, 0)));
    }

    #[test]
    fn a_new_configuration_is_tried_at_once_and_what_is_gone_is_forgotten() {
        let mut plan = plan(2, 2);
        add(&mut plan, 1, 0, &[10]);
        add(&mut plan, 2, 1, &[10]);
        add(&mut plan, 3, 1, &[11]);
        assert_eq!(next(&mut plan, 0), Some(1));
        fail(&mut plan, 0, 1);
        assert_eq!(next(&mut plan, 0), Some(2));
        let manner = Some(Manner::default());
        let forgotten = plan.configure(Millis(5), DAY_MS, &[manner, None, manner]);
        let key = |event, target| Key { event, target };
        assert_eq!(forgotten, [key(3, 1)]);
        assert_eq!(plan.next(Millis(5)), Some((key(1, 0), 1)));
        assert_eq!(plan.next(Millis(5)), None);
        // What is under way ends as always.
        let decision = plan.ended(Millis(5), key(2, 1), Ended::Delivered);
        assert_eq!(decision, Decision::Delivered { attempts: 1 });
        add(&mut plan, 4, 2, &[10]);
        assert_eq!(plan.next(Millis(5)), Some((key(4, 2), 0)));
    }

    /// Whatever happens: lanes stay in order, nothing is lost, nothing runs twice at once, the caps hold.
    #[test]
    fn any_course_of_things_ends_with_everything_decided_in_order() {
        for seed in 0..200 {
            let mut random = Random::new(seed);
            let mut plan = Plan::new(3, DAY_MS, &[Manner::default(); 2]);
            let mut expected: BTreeMap<(Target, i32), Vec<i64>> = BTreeMap::new();
            let mut seen: BTreeMap<(Target, i32), Vec<i64>> = BTreeMap::new();
            let mut builds_of = BTreeMap::new();
            let mut running = Vec::new();
            let mut event = 0;
            let mut now = 0;
            while event < 60 || plan.waiting(0) + plan.waiting(1) > 0 {
                now += random.below(3_000);
                if event < 60 && random.chance(0.5) {
                    event += 1;
                    let target = random.below(2) as usize;
                    let mut builds: Vec<i32> = (0..1 + random.below(2))
                        .map(|_| random.below(4) as i32)
                        .collect();
                    builds.dedup();
                    for build in &builds {
                        expected.entry((target, *build)).or_default().push(event);
                    }
                    builds_of.insert(event, builds.clone());
                    plan.add(Millis(now), waiting(event, target, &builds));
                }
                if let Some((key, _)) = plan.next(Millis(now)) {
                    assert!(!running.contains(&key));
                    running.push(key);
                    assert!(
                        running
                            .iter()
                            .filter(|other| other.target == key.target)
                            .count()
                            <= 2
                    );
                }
                if !running.is_empty() && random.chance(0.5) {
                    let key = running.remove(random.below(running.len() as u64) as usize);
                    let ended = match random.chance(0.3) {
                        true => Ended::Failed {
                            retry_after_ms: None,
                        },
                        false => Ended::Delivered,
                    };
                    if let Decision::Delivered { .. } = plan.ended(Millis(now), key, ended) {
                        for build in &builds_of[&key.event] {
                            seen.entry((key.target, *build))
                                .or_default()
                                .push(key.event);
                        }
                    }
                }
                if let (true, Some(wake)) = (running.is_empty(), plan.wake_at()) {
                    now = now.max(wake.0);
                }
            }
            assert_eq!(seen, expected, "seed {seed}");
        }
    }
}
