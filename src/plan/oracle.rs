//! Hydra's order of machines and steps (spec 4.2), written down plainly: every runnable step, every machine, two
//! comparisons. What the index finds must be the same, and [`Plan::audit`] makes the plan check that at every start.
//!
//! Uses none of the index's heaps, none of the kinds' sets or bits.

use std::cmp::Ordering;

use super::event::MachineSpec;
use super::graph::State;
use super::index::Class;
use super::machines::Machine;
use super::Plan;

impl Plan {
    /// From now on every start is compared with the plain order; a difference panics. Costs a scan over all steps and
    /// machines per start.
    pub fn audit(&mut self) {
        self.audited = true;
    }

    /// The machine and the step that are next, `None` if nothing can be started.
    pub(super) fn plain_choice(&self) -> Option<(u32, u32)> {
        let all = 0..self.graph.steps.len() as u32;
        let mut steps: Vec<u32> = all
            .filter(|&step| self.graph.step(step).state == State::Runnable)
            .filter(|&step| {
                self.plainly_urgent(step) || !self.jobsets.is_held(self.graph.step(step).set)
            })
            .collect();
        steps.sort_by(|&a, &b| self.compare_steps(a, b));
        let mut machines: Vec<&Machine> = self.machines.machines.iter().flatten().collect();
        machines.sort_by(|a, b| compare_machines(a, b));

        let trusted = |m: &Machine| m.failures == 0 || m.until <= self.now;
        let has_slot = |m: &Machine| {
            in_use(m) && m.current < m.spec.slots && (m.failures == 0 || m.probe.is_none())
        };
        for machine in machines.iter().filter(|m| has_slot(m) && trusted(m)) {
            let best = steps
                .iter()
                .find(|&&step| self.can_do(machine, step) && self.lets(machine, step));
            if let Some(&step) = best {
                return Some((machine.spec.id.0, step));
            }
        }
        // Nothing for the trusted ones: is it time to try one that is set aside, for a step no trusted one could do?
        let usable: Vec<&&Machine> = machines
            .iter()
            .filter(|m| in_use(m) && m.spec.slots > 0 && trusted(m))
            .collect();
        let due = |m: &Machine| m.last_fault + self.settings.probe_interval_ms <= self.now;
        for machine in machines
            .iter()
            .filter(|m| has_slot(m) && !trusted(m) && due(m))
        {
            let alone = |step: u32| !usable.iter().any(|other| self.can_do(other, step));
            let best = steps.iter().find(|&&step| {
                self.can_do(machine, step) && alone(step) && self.lets(machine, step)
            });
            if let Some(&step) = best {
                return Some((machine.spec.id.0, step));
            }
        }
        None
    }

    /// An emergency wants the step: it or something that waits for it is the top of one of its builds.
    fn plainly_urgent(&self, step: u32) -> bool {
        self.index.is_urgent(self.graph.step(step))
    }

    /// A machine that could do something an emergency waits for takes nothing else.
    fn lets(&self, machine: &Machine, step: u32) -> bool {
        let waits = |other: u32| self.graph.step(other).state.waits() && self.plainly_urgent(other);
        let held = (0..self.graph.steps.len() as u32)
            .any(|other| waits(other) && self.can_do(machine, other));
        !held || self.plainly_urgent(step)
    }

    fn can_do(&self, machine: &Machine, step: u32) -> bool {
        supports(
            &machine.spec,
            &self.index.classes[self.graph.step(step).class as usize],
        )
    }

    /// Less is better.
    pub(super) fn compare_steps(&self, a: u32, b: u32) -> Ordering {
        let (x, y) = (self.graph.step(a), self.graph.step(b));
        let features = |class: u32| self.index.classes[class as usize].features.len();
        let share = |step: u32, set: u32| {
            if self.plainly_urgent(step) {
                self.jobsets.lowest_share_of_all(set)
            } else {
                self.jobsets.lowest_share(set)
            }
        };
        let global = |step: u32, own: i32| {
            if self.plainly_urgent(step) {
                i32::MAX
            } else {
                own
            }
        };
        (global(b, y.global).cmp(&global(a, x.global)))
            .then(share(a, x.set).total_cmp(&share(b, y.set)))
            .then(y.local.cmp(&x.local))
            .then(features(y.class).cmp(&features(x.class)))
            .then(y.rdeps_seen.cmp(&x.rdeps_seen))
            .then(x.lowest.cmp(&y.lowest))
            .then(a.cmp(&b))
    }
}

fn in_use(machine: &Machine) -> bool {
    machine.listed && machine.spec.enabled && machine.order.is_none() && machine.short.is_none()
}

fn compare_machines(a: &Machine, b: &Machine) -> Ordering {
    let speed = |m: &Machine| {
        if m.spec.speed_factor > 0.0 {
            f64::from(m.spec.speed_factor)
        } else {
            1.0
        }
    };
    let load = |m: &Machine| (f64::from(m.current) / speed(m)).round();
    (load(a).total_cmp(&load(b)))
        .then(speed(b).total_cmp(&speed(a)))
        .then(b.current.cmp(&a.current))
        .then(a.spec.id.cmp(&b.spec.id))
}

fn supports(machine: &MachineSpec, class: &Class) -> bool {
    let system = &*class.platform == "builtin" || machine.systems.contains(&class.platform);
    let mandatory = machine.mandatory_features.iter().all(|mandatory| {
        class.features.contains(mandatory) || (&**mandatory == "local" && class.prefer_local)
    });
    let has = |feature| {
        machine.supported_features.contains(feature) || machine.mandatory_features.contains(feature)
    };
    system && mandatory && class.features.iter().all(has)
}
