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
            .collect();
        steps.sort_by(|&a, &b| self.compare_steps(a, b));
        let mut machines: Vec<&Machine> = self.machines.machines.iter().flatten().collect();
        machines.sort_by(|a, b| compare_machines(a, b));

        let trusted = |m: &Machine| m.failures == 0 || m.until <= self.now;
        let has_slot = |m: &Machine| {
            in_use(m) && m.current < m.spec.slots && (m.failures == 0 || m.probe.is_none())
        };
        for machine in machines.iter().filter(|m| has_slot(m) && trusted(m)) {
            let best = steps.iter().find(|&&step| self.can_do(machine, step));
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
            let best = steps
                .iter()
                .find(|&&step| self.can_do(machine, step) && alone(step));
            if let Some(&step) = best {
                return Some((machine.spec.id.0, step));
            }
        }
        None
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
        let share = |set: u32| self.jobsets.lowest_share(set);
        (y.global.cmp(&x.global))
            .then(share(x.set).total_cmp(&share(y.set)))
            .then(y.local.cmp(&x.local))
            .then(features(y.class).cmp(&features(x.class)))
            .then(y.rdeps_seen.cmp(&x.rdeps_seen))
            .then(x.lowest.cmp(&y.lowest))
            .then(a.cmp(&b))
    }
}

fn in_use(machine: &Machine) -> bool {
    machine.listed && machine.spec.enabled && machine.order.is_none()
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
