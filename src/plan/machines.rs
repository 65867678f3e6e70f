//! Machines: what they can do, how busy they are, which are set aside.
//!
//! Machines of equal capabilities form a kind; each kind keeps those of its machines that would take a step now,
//! best first. Does not know steps, only classes as bits.
//!
//! After a fault a machine is set aside, longer each time (Hydra's 60 · 3^(n-1) s, faults within 30 s count once).
//! From then until a run proves it works, at most one run at a time is put on it: a *probe*. Its time has come when
//! the delay is over; or after the probe interval, if no other machine could take the steps it would take.

use std::collections::{BTreeSet, VecDeque};

use super::event::{MachineOrder, MachineSpec, OrderState, PlanSettings};
use super::explanation::Standing;
use super::index::Class;
use super::signature::Signature;
use super::suspicion::{forget_old, Suspect};
use super::PhaseMs;
use crate::base::bits::Bits;
use crate::base::random::Random;
use crate::base::tournament::Tournament;
use crate::model::{MachineId, Millis, Phase, RunId};

/// Errors of a machine that are remembered.
const ERRORS_KEPT: usize = 5;
/// Machine ids are dense; one beyond this is refused.
pub const MACHINES_MAX: u32 = 1 << 20;

/// The best machine has the smallest key: round(load), speed descending, runs descending, id; 32 bits each.
type Key = u128;

/// Greater than every key.
const NO_KEY: Key = Key::MAX;

fn machine_of(key: Key) -> u32 {
    key as u32
}

/// Machines of equal capabilities.
pub struct Kind {
    systems: Vec<Box<str>>,
    supported: Vec<Box<str>>,
    mandatory: Vec<Box<str>>,
    /// Configured and enabled machines of the kind.
    pub machines: u32,
    /// Of these, those with slots that are not set aside, busy or not.
    usable: u32,
    /// When the last machine of the kind went.
    pub last_seen: Millis,
    /// Classes that it supports.
    pub classes: Bits,
    /// Would take a step now: each at its seat.
    free: Tournament<Key>,
    /// Seats ever given, and those given back.
    seats: u32,
    seats_free: Vec<u32>,
    /// Set aside, but would take a step that no usable machine can do.
    probes: BTreeSet<Key>,
}

impl Kind {
    fn take_seat(&mut self) -> u32 {
        self.seats_free.pop().unwrap_or_else(|| {
            self.seats += 1;
            self.seats - 1
        })
    }

    /// Hydra's `supportsStep` (spec 3.4), with the mandatory features among the supported ones (D9).
    pub fn supports(&self, class: &Class) -> bool {
        let has_system = &*class.platform == "builtin" || self.systems.contains(&class.platform);
        has_system
            && self.mandatory.iter().all(|feature| {
                class.features.contains(feature) || (&**feature == "local" && class.prefer_local)
            })
            && class
                .features
                .iter()
                .all(|feature| self.supported.contains(feature) || self.mandatory.contains(feature))
    }
}

/// Steps that are done and the time they took.
#[derive(Clone, Copy, Default, PartialEq, Eq, Debug)]
pub struct StepTime {
    pub steps: u64,
    /// As the machine tells, milliseconds.
    pub built_ms: u64,
    /// Sending and receiving, milliseconds.
    pub copied_ms: u64,
}

impl StepTime {
    pub fn add(&mut self, other: StepTime) {
        self.steps += other.steps;
        self.built_ms = self.built_ms.saturating_add(other.built_ms);
        self.copied_ms = self.copied_ms.saturating_add(other.copied_ms);
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Place {
    Nowhere,
    Free(Key),
    Probe(Key),
}

pub struct Machine {
    pub spec: MachineSpec,
    /// Listed in the configuration.
    pub listed: bool,
    pub kind: u32,
    /// Its place among those of its kind.
    seat: u32,
    /// Slots in use.
    pub current: u32,
    /// Consecutive faults; 0 is in good standing.
    pub failures: u32,
    last_counted: Millis,
    pub last_fault: Millis,
    /// Set aside until then.
    pub until: Millis,
    pub last_error: Option<Box<str>>,
    /// An operator's order that keeps it from taking steps.
    pub order: Option<MachineOrder>,
    /// Steps that failed there as if it were broken; each at most once, the newest at the end.
    suspects: Vec<Suspect>,
    /// Set aside because of them: only a step that does not fail so shows that it works.
    pub broken: Option<Signature>,
    /// It has too little room: since when, and how little.
    pub short: Option<(Millis, Box<str>)>,
    /// The last few, the newest at the end; not forgotten when it works again.
    pub errors: VecDeque<(Millis, Box<str>)>,
    pub probe: Option<RunId>,
    pub idle_since: Millis,
    pub steps: StepTime,
    pub phase_ms: PhaseMs,
    /// Whether it is counted in its kind's `machines` and `usable`.
    counted: (bool, bool),
    place: Place,
}

impl Machine {
    /// Whether it takes steps, and why not.
    pub fn standing(&self, now: Millis) -> Standing {
        if !self.listed || !self.spec.enabled {
            Standing::Removed
        } else if let Some(order) = &self.order {
            Standing::Ordered {
                disabled: order.state == OrderState::Disabled,
                for_secs: order
                    .until
                    .map(|until| until.saturating_sub(now.secs()).max(0) as u64),
                secs: now.secs().saturating_sub(order.since).max(0) as u64,
                who: order.who.clone(),
                reason: order.reason.clone(),
                running: self.current,
            }
        } else if self.spec.slots == 0 {
            Standing::NoSlots
        } else if let Some((since, why)) = &self.short {
            Standing::LowDisk {
                secs: now.since(*since) / 1000,
                why: why.clone(),
            }
        } else if self.failures > 0 && now < self.until {
            Standing::SetAside {
                for_secs: self.until.since(now) / 1000,
                failures: self.failures,
                why: self.last_error.clone().unwrap_or_default(),
            }
        } else if self.failures > 0 {
            Standing::OnTrial {
                failures: self.failures,
                busy: self.probe.is_some(),
            }
        } else if self.current >= self.spec.slots {
            Standing::Full
        } else {
            Standing::Ready
        }
    }
}

/// Where to start the next step.
#[derive(Clone, Copy)]
pub struct Choice {
    pub machine: u32,
    /// Only steps that no usable machine can do.
    pub probe: bool,
    /// Only steps that an emergency wants.
    pub urgent_only: bool,
}

/// See the module.
#[derive(Default)]
pub struct Machines {
    pub machines: Vec<Option<Machine>>,
    pub kinds: Vec<Kind>,
    /// Classes that a usable machine supports.
    covered: Bits,
    /// A machines file is loaded, since when.
    pub loaded_since: Option<Millis>,
    /// The list has been given at least once.
    pub known: bool,
    /// Operators' orders, also about machines that are not configured.
    orders: Vec<MachineOrder>,
    /// Machines whose order has changed, with the one before; whoever tells of them takes them out.
    pub orders_changed: Vec<(u32, Option<MachineOrder>)>,
}

fn speed(factor: f32) -> f32 {
    if factor.is_finite() && factor > 0.0 {
        factor
    } else {
        1.0
    }
}

fn key(machine: &Machine) -> Key {
    let speed = speed(machine.spec.speed_factor);
    let load = (f64::from(machine.current) / f64::from(speed)).round() as u32;
    // The bits of positive floats are ordered as the floats are.
    let parts = [load, !speed.to_bits(), !machine.current, machine.spec.id.0];
    parts
        .iter()
        .fold(0, |key, &part| key << 32 | Key::from(part))
}

/// `interval · factor^(n-1)`, capped, milliseconds.
pub fn growing_ms(settings: &PlanSettings, n: u32) -> u64 {
    let factor = if settings.retry_factor.is_finite() {
        settings.retry_factor.max(1.0)
    } else {
        1.0
    };
    let grown = settings.retry_interval_ms as f64 * factor.powi(n.clamp(1, 64) as i32 - 1);
    (grown as u64).min(settings.retry_interval_ms_max)
}

/// Hydra's `random() % secs` seconds beside its interval of 60 s; as much less as the interval is shorter.
pub fn jitter_ms(settings: &PlanSettings, secs: u64, random: &mut Random) -> u64 {
    random
        .below(secs)
        .saturating_mul(settings.retry_interval_ms)
        / 60
}

impl Machines {
    pub fn get(&self, machine: u32) -> Option<&Machine> {
        self.machines.get(machine as usize)?.as_ref()
    }

    fn get_mut(&mut self, machine: u32) -> &mut Machine {
        self.machines[machine as usize]
            .as_mut()
            .expect("BUG: a machine that was never configured")
    }

    /// Takes the machines as configured now.
    pub fn configure(
        &mut self,
        specs: Vec<MachineSpec>,
        from_file: bool,
        classes: &mut [Class],
        now: Millis,
        grace_ms: u64,
    ) {
        self.known = true;
        self.loaded_since = if from_file {
            self.loaded_since.or(Some(now))
        } else {
            None
        };
        for kind in &mut self.kinds {
            if kind.machines > 0 {
                kind.last_seen = now;
            }
        }
        for machine in self.machines.iter_mut().flatten() {
            machine.listed = false;
        }
        for spec in specs {
            if spec.id.0 >= MACHINES_MAX {
                continue;
            }
            let at = spec.id.0 as usize;
            if self.machines.len() <= at {
                self.machines.resize_with(at + 1, || None);
            }
            let kind = self.kind_of(&spec, classes);
            match &mut self.machines[at] {
                Some(machine) => {
                    machine.listed = true;
                    if machine.kind != kind {
                        // Out of the old kind's sets and counts before it enters the new one's.
                        machine.listed = false;
                        self.refresh(at as u32, now);
                        let seat = self.kinds[kind as usize].take_seat();
                        let machine = self.get_mut(at as u32);
                        let old = (machine.kind, machine.seat);
                        (machine.kind, machine.seat) = (kind, seat);
                        machine.listed = true;
                        machine.spec = spec;
                        self.kinds[old.0 as usize].seats_free.push(old.1);
                    } else {
                        machine.spec = spec;
                    }
                }
                slot => {
                    *slot = Some(Machine {
                        spec,
                        listed: true,
                        kind,
                        seat: self.kinds[kind as usize].take_seat(),
                        current: 0,
                        failures: 0,
                        last_counted: Millis(0),
                        last_fault: Millis(0),
                        until: Millis(0),
                        last_error: None,
                        order: None,
                        suspects: Vec::new(),
                        broken: None,
                        short: None,
                        errors: VecDeque::new(),
                        probe: None,
                        idle_since: now,
                        steps: StepTime::default(),
                        phase_ms: PhaseMs::default(),
                        counted: (false, false),
                        place: Place::Nowhere,
                    });
                }
            }
        }
        self.obey(now);
        for at in 0..self.machines.len() as u32 {
            self.refresh(at, now);
        }
        // Support of a class: now, if a kind with machines has it; else since the last one went.
        for kind in &self.kinds {
            let seen = if kind.machines > 0 {
                now
            } else {
                kind.last_seen
            };
            for (number, class) in classes.iter_mut().enumerate() {
                if kind.classes.has(number as u32) {
                    class.supported_until = class.supported_until.max(Some(seen));
                }
            }
        }
        self.forget_kinds(now, grace_ms);
        self.cover();
    }

    fn kind_of(&mut self, spec: &MachineSpec, classes: &[Class]) -> u32 {
        let sorted = |names: &[Box<str>]| {
            let mut names = names.to_vec();
            names.sort_unstable();
            names.dedup();
            names
        };
        let (systems, supported, mandatory) = (
            sorted(&spec.systems),
            sorted(&spec.supported_features),
            sorted(&spec.mandatory_features),
        );
        let same = |kind: &Kind| {
            kind.systems == systems && kind.supported == supported && kind.mandatory == mandatory
        };
        if let Some(at) = self.kinds.iter().position(same) {
            return at as u32;
        }
        let mut kind = Kind {
            systems,
            supported,
            mandatory,
            machines: 0,
            usable: 0,
            last_seen: Millis(0),
            classes: Bits::default(),
            free: Tournament::new(NO_KEY),
            seats: 0,
            seats_free: Vec::new(),
            probes: BTreeSet::new(),
        };
        for (number, class) in classes.iter().enumerate() {
            let supports = kind.supports(class);
            kind.classes.set(number as u32, supports);
        }
        self.kinds.push(kind);
        self.kinds.len() as u32 - 1
    }

    /// Kinds without machines are kept for the grace time, since new classes ask what they could do; then only
    /// those are dropped that no machine refers to, from the end, so that numbers stay.
    fn forget_kinds(&mut self, now: Millis, grace_ms: u64) {
        while let Some(kind) = self.kinds.last() {
            let last = self.kinds.len() as u32 - 1;
            let used = self
                .machines
                .iter()
                .flatten()
                .any(|machine| machine.kind == last);
            if kind.machines > 0 || used || now.since(kind.last_seen) <= grace_ms {
                break;
            }
            self.kinds.pop();
        }
    }

    /// Takes operators' orders, complete. An order that is new and enables a machine ends its being set aside.
    pub fn order(&mut self, orders: Vec<MachineOrder>, now: Millis) {
        let before = std::mem::replace(&mut self.orders, orders);
        for order in self.orders.clone() {
            if order.state == OrderState::Enabled && !before.contains(&order) {
                for at in 0..self.machines.len() as u32 {
                    if self.get(at).is_some_and(|m| m.spec.name == order.machine) {
                        self.works(at, now);
                    }
                }
            }
        }
        self.obey(now);
    }

    /// Gives each machine the order that holds for it now.
    fn obey(&mut self, now: Millis) {
        for at in 0..self.machines.len() {
            let Some(machine) = &mut self.machines[at] else {
                continue;
            };
            let holds = |order: &&MachineOrder| {
                order.machine == machine.spec.name
                    && order.state != OrderState::Enabled
                    && order.until.is_none_or(|until| now.secs() < until)
            };
            let order = self.orders.iter().find(holds).cloned();
            if machine.order != order {
                let before = std::mem::replace(&mut machine.order, order);
                self.orders_changed.push((at as u32, before));
                self.refresh(at as u32, now);
            }
        }
    }

    /// The order that enables the machine of this name, if one does.
    pub fn enabled_by(&self, name: &str) -> Option<&MachineOrder> {
        let mut orders = self.orders.iter();
        orders.find(|order| order.state == OrderState::Enabled && *order.machine == *name)
    }

    /// A machine has too little room from now on, or enough again. False if that is no news.
    pub fn set_short(&mut self, at: u32, why: Option<Box<str>>, now: Millis) -> bool {
        let Some(machine) = self.machines.get_mut(at as usize).and_then(Option::as_mut) else {
            return false;
        };
        let news = machine.short.is_some() != why.is_some();
        let since = machine.short.as_ref().map_or(now, |(since, _)| *since);
        machine.short = why.map(|why| (since, why));
        self.refresh(at, now);
        news
    }

    /// Does this machine support the class and no other one take steps of it?
    pub fn is_alone_for(&self, at: u32, class: u32) -> bool {
        let Some(machine) = self.get(at) else {
            return false;
        };
        let supports = |kind: &&Kind| kind.classes.has(class);
        let usable: u32 = self
            .kinds
            .iter()
            .filter(supports)
            .map(|kind| kind.usable)
            .sum();
        self.kinds[machine.kind as usize].classes.has(class)
            && usable == u32::from(machine.counted.1)
    }

    /// Ends orders whose time is over, and looks at the machine.
    pub fn ring(&mut self, at: u32, now: Millis) {
        self.obey(now);
        self.refresh(at, now);
    }

    /// Puts a machine where its standing says. Call after every change of it, and when its time has come.
    pub fn refresh(&mut self, at: u32, now: Millis) {
        let Some(machine) = self.machines.get_mut(at as usize).and_then(Option::as_mut) else {
            return;
        };
        let configured = machine.listed && machine.spec.enabled;
        // One that is drained or has too little room still counts as one that supports its systems: steps wait for it.
        let open = configured && machine.order.is_none() && machine.short.is_none();
        let trusted = machine.failures == 0 || now >= machine.until;
        let counted = (configured, open && machine.spec.slots > 0 && trusted);
        let takes = open
            && machine.current < machine.spec.slots
            && (machine.failures == 0 || machine.probe.is_none());
        let place = match (takes, trusted) {
            (false, _) => Place::Nowhere,
            (true, true) => Place::Free(key(machine)),
            (true, false) => Place::Probe(key(machine)),
        };
        let (old_place, old_counted) = (machine.place, machine.counted);
        let (at_kind, seat) = (machine.kind as usize, machine.seat);
        machine.place = place;
        machine.counted = counted;
        let kind = &mut self.kinds[machine.kind as usize];
        if old_counted != counted {
            kind.machines = kind.machines + u32::from(counted.0) - u32::from(old_counted.0);
            let before = kind.usable;
            kind.usable = kind.usable + u32::from(counted.1) - u32::from(old_counted.1);
            if (before == 0) != (kind.usable == 0) {
                self.cover();
            }
        }
        if old_place != place {
            // A machine changes its kind only when it is nowhere.
            let kind = &mut self.kinds[at_kind];
            if let Place::Probe(key) = old_place {
                kind.probes.remove(&key);
            }
            match (old_place, place) {
                (_, Place::Free(key)) => kind.free.put(seat, key),
                (Place::Free(_), _) => kind.free.put(seat, NO_KEY),
                _ => {}
            }
            if let Place::Probe(key) = place {
                kind.probes.insert(key);
            }
        }
    }

    /// Reckons anew which classes a usable machine supports; call when there is a new class.
    pub fn cover(&mut self) {
        self.covered.clear();
        for kind in self.kinds.iter().filter(|kind| kind.usable > 0) {
            self.covered.add_all(&kind.classes);
        }
    }

    /// The best machine that would take a step of one of the `runnable` classes. `held`: machines that could do one of the
    /// first classes take only steps of the second ones.
    pub fn best(
        &self,
        runnable: &Bits,
        held: Option<(&Bits, &Bits)>,
        settings: &PlanSettings,
        now: Millis,
    ) -> Option<Choice> {
        let wanted_of = |kind: &Kind| match held {
            Some((held, urgent)) if kind.classes.meets(held, None) => (urgent, true),
            _ => (runnable, false),
        };
        let mut best = NO_KEY;
        let mut urgent_only = false;
        for kind in &self.kinds {
            let (wanted, urgent) = wanted_of(kind);
            if kind.free.least() < best && kind.classes.meets(wanted, None) {
                best = kind.free.least();
                urgent_only = urgent;
            }
        }
        if best != NO_KEY {
            let machine = machine_of(best);
            return Some(Choice {
                machine,
                probe: false,
                urgent_only,
            });
        }
        for kind in self.kinds.iter().filter(|kind| !kind.probes.is_empty()) {
            let (wanted, urgent) = wanted_of(kind);
            if !kind.classes.meets(wanted, Some(&self.covered)) {
                continue;
            }
            let due = |key: &&Key| {
                let machine = self.get(machine_of(**key));
                machine.is_some_and(|m| now >= m.last_fault + settings.probe_interval_ms)
            };
            if let Some(&key) = kind.probes.iter().find(due) {
                if key < best {
                    best = key;
                    urgent_only = urgent;
                }
            }
        }
        let machine = machine_of(best);
        (best != NO_KEY).then_some(Choice {
            machine,
            probe: true,
            urgent_only,
        })
    }

    /// The classes a choice may be given a step of: mask, and what to leave out.
    pub fn mask(&self, choice: Choice) -> (&Bits, Option<&Bits>) {
        let machine = self
            .get(choice.machine)
            .expect("BUG: a chosen machine is configured");
        let without = choice.probe.then_some(&self.covered);
        (&self.kinds[machine.kind as usize].classes, without)
    }

    /// A run takes a slot. True if the run is a probe.
    pub fn occupy(&mut self, at: u32, run: RunId, now: Millis) -> bool {
        let machine = self.get_mut(at);
        machine.current += 1;
        let probe = machine.failures > 0;
        if probe {
            assert!(machine.probe.is_none(), "BUG: two probes on one machine");
            machine.probe = Some(run);
        }
        self.refresh(at, now);
        probe
    }

    /// A run leaves its slot.
    pub fn vacate(&mut self, at: u32, now: Millis) {
        let machine = self.get_mut(at);
        assert!(machine.current > 0, "BUG: a slot left twice");
        machine.current -= 1;
        if machine.current == 0 {
            machine.idle_since = now;
        }
        self.refresh(at, now);
    }

    /// A run has ended, whatever came of it.
    pub fn run_over(&mut self, at: u32, run: RunId, now: Millis) {
        let machine = self.get_mut(at);
        if machine.probe == Some(run) {
            machine.probe = None;
            self.refresh(at, now);
        }
    }

    /// A step failed there as if the machine were broken. How many different ones did so alike, not long ago?
    pub fn accuse(&mut self, at: u32, suspect: Suspect) -> usize {
        let suspects = &mut self.get_mut(at).suspects;
        suspects.retain(|known| known.drv != suspect.drv);
        forget_old(suspects, suspect.at);
        let signature = suspect.signature;
        suspects.push(suspect);
        let alike = suspects.iter().filter(|known| known.signature == signature);
        alike.count()
    }

    /// The step failed alike on another machine than `at`: then it speaks against that one no more. False if it did not.
    pub fn acquit(&mut self, at: u32, signature: Signature, drv: &str) -> bool {
        let mut others = self.machines.iter_mut().flatten();
        let alike = |known: &Suspect| known.signature == signature && *known.drv == *drv;
        let found = others.find_map(|machine| {
            let place = machine.suspects.iter().position(alike)?;
            (machine.spec.id.0 != at).then_some((machine, place))
        });
        let Some((machine, place)) = found else {
            return false;
        };
        machine.suspects.remove(place);
        true
    }

    /// It is set aside because of such steps.
    pub fn breaks(&mut self, at: u32, signature: Signature) {
        self.get_mut(at).broken = Some(signature);
    }

    /// The best machine in good standing, other than one, that would take a step of this class now.
    pub fn best_but(&self, avoid: u32, class: u32) -> Option<u32> {
        let kinds = self.kinds.iter().filter(|kind| kind.classes.has(class));
        let good = |key: &Key| {
            let machine = machine_of(*key);
            machine != avoid
                && self
                    .get(machine)
                    .is_some_and(|machine| machine.failures == 0)
        };
        let best = kinds.flat_map(|kind| kind.free.keys()).filter(good).min();
        best.map(machine_of)
    }

    /// A run has shown that the machine works.
    pub fn works(&mut self, at: u32, now: Millis) {
        let machine = self.get_mut(at);
        machine.broken = None;
        if machine.failures > 0 {
            machine.failures = 0;
            machine.until = Millis(0);
            machine.probe = None;
            machine.last_error = None;
            self.refresh(at, now);
        }
    }

    /// A fault of the machine. Returns when to look at it again (twice: for a probe, and when the delay is over)
    /// and, if it is set aside anew, for how many milliseconds.
    pub fn fault(
        &mut self,
        at: u32,
        message: &str,
        settings: &PlanSettings,
        random: &mut Random,
        now: Millis,
    ) -> ([Millis; 2], Option<u64>) {
        let machine = self.get_mut(at);
        machine.last_error = Some(message.into());
        machine.errors.push_back((now, message.into()));
        if machine.errors.len() > ERRORS_KEPT {
            machine.errors.pop_front();
        }
        machine.last_fault = now;
        let mut aside = None;
        let counts =
            machine.failures == 0 || now.since(machine.last_counted) >= settings.fault_burst_ms;
        if counts || machine.until <= now {
            if counts {
                machine.failures = machine.failures.saturating_add(1);
                machine.last_counted = now;
            }
            let delay = growing_ms(settings, machine.failures) + jitter_ms(settings, 30, random);
            machine.until = now + delay.max(1);
            aside = Some(delay);
        }
        let times = [now + settings.probe_interval_ms, machine.until];
        self.refresh(at, now);
        (times, aside)
    }

    /// Is a machine configured (set aside or not) that supports the class?
    pub fn supports(&self, class: u32) -> bool {
        self.kinds
            .iter()
            .any(|kind| kind.machines > 0 && kind.classes.has(class))
    }

    /// Is a machine that supports the class not set aside?
    pub fn covers(&self, class: u32) -> bool {
        self.covered.has(class)
    }

    /// Would a machine that supports the class take a step now?
    pub fn takes(&self, class: u32) -> bool {
        self.kinds
            .iter()
            .any(|kind| kind.free.least() != NO_KEY && kind.classes.has(class))
    }

    /// Slots of configured machines that are not in use, set aside or not.
    pub fn free_slots(&self) -> u64 {
        let configured = self.machines.iter().flatten().filter(|m| m.listed);
        configured
            .map(|m| u64::from(m.spec.slots.saturating_sub(m.current)))
            .sum()
    }

    /// Is a configured machine not in good standing?
    pub fn on_trial(&self) -> bool {
        let mut configured = self.machines.iter().flatten().filter(|m| m.listed);
        configured.any(|m| m.failures > 0)
    }

    /// A run has spent time on the machine.
    pub fn spend(&mut self, at: u32, phase: Phase, ms: u64) {
        self.get_mut(at).phase_ms[phase.index()] += ms;
    }

    /// For the invariants: sets and counts agree with the machines; `held`: slots in use by runs, by machine.
    pub fn check(&self, held: &[u32]) {
        let (mut counted, mut usable) = (vec![0; self.kinds.len()], vec![0; self.kinds.len()]);
        let mut placed = 0;
        for (at, machine) in self.machines.iter().enumerate() {
            let Some(machine) = machine else { continue };
            assert_eq!(
                machine.current,
                held.get(at).copied().unwrap_or(0),
                "BUG: slots in use on {}",
                machine.spec.name
            );
            let kind = machine.kind as usize;
            counted[kind] += u32::from(machine.counted.0);
            usable[kind] += u32::from(machine.counted.1);
            match machine.place {
                Place::Nowhere => {}
                Place::Free(key) => {
                    placed += 1;
                    assert!(
                        self.kinds[kind].free.get(machine.seat) == key,
                        "BUG: a free machine is not in its kind's set"
                    );
                }
                Place::Probe(key) => {
                    placed += 1;
                    assert!(
                        self.kinds[kind].probes.contains(&key),
                        "BUG: a probe is not in its kind's set"
                    );
                }
            }
        }
        for (at, kind) in self.kinds.iter().enumerate() {
            assert_eq!(
                kind.free.least(),
                kind.free.keys().min().unwrap_or(NO_KEY),
                "BUG: best machine of kind {at}"
            );
            assert_eq!(
                (kind.machines, kind.usable),
                (counted[at], usable[at]),
                "BUG: machines counted in kind {at}"
            );
            placed -= kind.free.keys().count() + kind.probes.len();
        }
        assert_eq!(placed, 0, "BUG: a kind's set has a machine too many");
    }

    pub fn id(at: u32) -> MachineId {
        MachineId(at)
    }
}
