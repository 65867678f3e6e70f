//! What must hold between turns, checked the slow way. For tests and simulation.

use std::collections::{BTreeMap, BTreeSet};

use super::builds::BuildState;
use super::graph::{State, NONE, STATES};
use super::shares::EMPTY_SET;
use super::Plan;

impl Plan {
    /// Panics if something that must hold does not. Walks the whole graph.
    pub fn check_invariants(&self) {
        let mut states = [0u32; STATES];
        let mut sets: BTreeMap<u32, u32> = BTreeMap::new();
        let mut heap_entries = 0;
        let mut running = BTreeMap::new();
        let mut runnable = BTreeMap::new();
        let mut of_class: BTreeMap<u32, u32> = BTreeMap::new();
        let mut rdeps_live: BTreeMap<u32, u32> = BTreeMap::new();
        for (number, slot) in self.graph.steps.iter().enumerate() {
            let number = number as u32;
            if slot.state == State::Free {
                continue;
            }
            let drv = self.graph.drv(number);
            states[slot.state as usize] += 1;
            if slot.set != EMPTY_SET {
                *sets.entry(slot.set).or_default() += 1;
            }
            if slot.class != NONE {
                *of_class.entry(slot.class).or_default() += 1;
            }
            let mut missing = 0;
            for dep in self.graph.deps(number) {
                let state = self.graph.step(dep).state;
                assert!(
                    state != State::Free && state != State::Valid,
                    "BUG: {drv} waits for a step that is {state:?}"
                );
                *rdeps_live.entry(dep).or_default() += 1;
                missing += 1;
            }
            assert_eq!(slot.missing, missing, "BUG: what {drv} waits for");
            match slot.state {
                State::Blocked => assert!(missing > 0, "BUG: {drv} is blocked by nothing"),
                State::Runnable
                | State::Running
                | State::Deferred
                | State::Valid
                | State::Asking
                | State::Inspecting => {
                    assert_eq!(
                        missing, 0,
                        "BUG: {drv} is {:?} without its inputs",
                        slot.state
                    );
                }
                State::AskLater | State::Doomed | State::Free => {}
            }
            if matches!(
                slot.state,
                State::Asking
                    | State::Inspecting
                    | State::Blocked
                    | State::Runnable
                    | State::Deferred
            ) {
                let leaving = self.unwanted.contains(&number);
                assert!(
                    self.graph.is_wanted(number) || leaving,
                    "BUG: nobody wants {drv}, {:?}",
                    slot.state
                );
            }
            if slot.state == State::Runnable {
                assert!(!slot.rekey, "BUG: {drv} is runnable and not in the index");
                heap_entries += self.jobsets.members(slot.set).len().max(1) as u64;
                *runnable.entry(slot.class).or_insert(0u32) += 1;
            }
            if slot.state == State::Running {
                *running.entry(slot.class).or_insert(0u32) += 1;
                assert_eq!(
                    self.runs.peek(slot.aux).step,
                    number,
                    "BUG: the run of {drv} is of another step"
                );
            }
        }
        for (number, slot) in self.graph.steps.iter().enumerate() {
            let counted = rdeps_live.get(&(number as u32)).copied().unwrap_or(0);
            if slot.state != State::Free {
                assert_eq!(
                    slot.rdeps_live,
                    counted,
                    "BUG: dependents of {}",
                    self.graph.drv(number as u32)
                );
                let walked = self.graph.rdeps(number as u32).count() as u32;
                assert_eq!(
                    walked,
                    counted,
                    "BUG: list of dependents of {}",
                    self.graph.drv(number as u32)
                );
            }
        }
        self.check_wishes();
        assert_eq!(states, self.states, "BUG: steps counted by state");
        assert_eq!(
            states.iter().sum::<u32>() as usize,
            self.graph.names.len(),
            "BUG: names without steps"
        );
        self.jobsets.check(&sets);
        assert_eq!(
            self.index.check(&self.graph.steps),
            heap_entries,
            "BUG: entries in the index"
        );
        for (number, class) in self.index.classes.iter().enumerate() {
            let counted =
                |map: &BTreeMap<u32, u32>| map.get(&(number as u32)).copied().unwrap_or(0);
            let is = (class.steps, class.runnable, class.running);
            assert_eq!(
                is,
                (counted(&of_class), counted(&runnable), counted(&running)),
                "BUG: class {}",
                class.system_type
            );
        }
        self.check_builds();
        self.check_urgent();
        self.check_runs(states[State::Running as usize]);
    }

    /// What builds ask of a step, it asks of its dependencies.
    fn check_wishes(&self) {
        let all = |set: u32, of: u32| {
            self.jobsets
                .members(of)
                .iter()
                .all(|jobset| self.jobsets.members(set).contains(jobset))
        };
        for (number, slot) in self.graph.steps.iter().enumerate() {
            if slot.state == State::Free {
                continue;
            }
            let drv = self.graph.drv(number as u32);
            for (id, build) in self.builds.of_step(number as u32, &self.graph) {
                let build = self.builds.get(build);
                let heard = slot.global >= build.global
                    && slot.local >= build.local
                    && slot.lowest <= id.0
                    && self.jobsets.members(slot.set).contains(&build.jobset);
                assert!(heard, "BUG: {drv} does not know what build {id} asks for");
            }
            if slot.spreading {
                continue;
            }
            for dep in self.graph.deps(number as u32) {
                let below = self.graph.step(dep);
                let heard = below.global >= slot.global
                    && below.local >= slot.local
                    && below.lowest <= slot.lowest
                    && below.max_silent >= slot.max_silent
                    && below.timeout >= slot.timeout
                    && (self.index.is_urgent(below) || !self.index.is_urgent(slot))
                    && all(below.set, slot.set);
                assert!(
                    heard,
                    "BUG: {} does not know what {drv} asks for",
                    self.graph.drv(dep)
                );
            }
        }
    }

    /// Urgent is what an emergency's build wants, and it is counted.
    fn check_urgent(&self) {
        let mut urgent: BTreeSet<u32> = BTreeSet::new();
        let mut todo = Vec::new();
        for emergency in &self.emergencies {
            if let Some(slot) = self.builds.find(emergency.build) {
                if self.builds.get(slot).state == BuildState::Queued {
                    todo.push(self.builds.get(slot).step);
                }
            }
        }
        while let Some(step) = todo.pop() {
            if urgent.insert(step) {
                todo.extend(self.graph.deps(step));
            }
        }
        // While a failure is worked off, over as many turns as it takes, what a doomed step waited for is cut loose
        // already; the emergency of its build ends with it.
        let is_doomed = |&step: &u32| self.graph.step(step).state == State::Doomed;
        let failing = urgent.iter().any(is_doomed);
        let mut counted: BTreeMap<u32, (u32, u32)> = BTreeMap::new();
        for (number, slot) in self.graph.steps.iter().enumerate() {
            let marked = self.index.is_urgent(slot);
            if marked && slot.state.waits() {
                let class = counted.entry(slot.class).or_default();
                class.0 += 1;
                class.1 += u32::from(slot.state == State::Runnable);
                let wanted = urgent.contains(&(number as u32));
                let leaving = self.unwanted.contains(&(number as u32));
                let drv = self.graph.drv(number as u32);
                assert!(
                    wanted || leaving || failing || !self.unwanted.is_empty(),
                    "BUG: {drv} is urgent and no emergency wants it"
                );
            }
        }
        if self.spread.is_empty() {
            for &step in &urgent {
                let slot = self.graph.step(step);
                let drv = self.graph.drv(step);
                assert!(
                    self.index.is_urgent(slot),
                    "BUG: an emergency wants {drv}, which is not urgent"
                );
            }
        }
        for (number, class) in self.index.classes.iter().enumerate() {
            let counted = counted.get(&(number as u32)).copied().unwrap_or_default();
            assert_eq!(
                (class.urgent_waiting, class.urgent_runnable),
                counted,
                "BUG: urgent steps of {}",
                class.system_type
            );
        }
    }

    fn check_builds(&self) {
        let (mut queued, mut asked) = (0, 0);
        let mut attached = BTreeSet::new();
        for (number, slot) in self.graph.steps.iter().enumerate() {
            if slot.state != State::Free {
                for (id, build) in self.builds.of_step(number as u32, &self.graph) {
                    assert_eq!(
                        self.builds.get(build).step,
                        number as u32,
                        "BUG: build {id} is with another step"
                    );
                    assert!(attached.insert(build), "BUG: build {id} is attached twice");
                }
            } else {
                assert_eq!(slot.builds, NONE, "BUG: builds of a free step");
            }
        }
        for (slot, build) in self.builds.slots.iter().enumerate() {
            let slot = slot as u32;
            match build.state {
                BuildState::Free => continue,
                BuildState::Queued => {
                    queued += 1;
                    assert!(
                        attached.contains(&slot),
                        "BUG: build {} has no step",
                        build.id
                    );
                }
                BuildState::Asked(_) => asked += 1,
                BuildState::Finished(ticket) => {
                    assert!(
                        ticket <= self.last_ticket,
                        "BUG: build {} ended under a ticket to come",
                        build.id
                    );
                }
            }
            assert_eq!(
                self.builds.find(build.id),
                Some(slot),
                "BUG: build {} is not found",
                build.id
            );
        }
        assert_eq!(
            (queued, asked),
            (self.builds.queued, self.builds.asked),
            "BUG: builds counted"
        );
        assert_eq!(
            attached.len() as u32,
            queued,
            "BUG: builds attached and not queued"
        );
    }

    fn check_runs(&self, running: u32) {
        let mut held = vec![0; self.machines.machines.len()];
        let mut paid: BTreeMap<u32, u32> = BTreeMap::new();
        for run in self.runs.all() {
            let slot = self.graph.step(run.step);
            assert_eq!(
                slot.state,
                State::Running,
                "BUG: run {} of a step that does not run",
                run.id
            );
            assert!(
                self.graph.is_wanted(run.step) || run.killed || self.unwanted.contains(&run.step),
                "BUG: unwanted run"
            );
            held[run.machine as usize] += u32::from(run.holds_slot);
            *paid.entry(run.payer).or_default() += 1;
        }
        self.jobsets.check_running(&paid);
        assert_eq!(
            self.runs.len() as u32,
            running,
            "BUG: runs and running steps"
        );
        self.machines.check(&held);
        assert!(
            self.questions.under_way() <= self.settings.questions_max.max(1) as usize + 1,
            "BUG: too many questions"
        );
    }
}
