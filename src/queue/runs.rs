//! The runs under way and how to interrupt them.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};

use crate::base::lock::lock;
use crate::model::RunId;
use crate::sys::kill::KillSwitch;

/// From the moment the plan starts a run until it has ended. A leaf lock: nothing is waited for under it.
#[derive(Default)]
pub struct Runs {
    states: Mutex<HashMap<RunId, State>>,
}

enum State {
    /// On its way to its slot; killed already or not.
    Expected {
        killed: bool,
    },
    Armed(Arc<KillSwitch>),
}

impl Runs {
    pub fn expect(&self, run: RunId) {
        lock(&self.states).insert(run, State::Expected { killed: false });
    }

    /// The slot has it: kills go to its switch, also one that came before.
    pub fn arm(&self, run: RunId, kill: &Arc<KillSwitch>) {
        let old = lock(&self.states).insert(run, State::Armed(kill.clone()));
        if matches!(old, Some(State::Expected { killed: true })) {
            kill.throw();
        }
    }

    /// No kill of this run can come any more.
    pub fn forget(&self, run: RunId) {
        lock(&self.states).remove(&run);
    }

    /// Interrupts a run, if it is still there.
    pub fn kill(&self, run: RunId) {
        match lock(&self.states).get_mut(&run) {
            Some(State::Expected { killed }) => *killed = true,
            Some(State::Armed(kill)) => kill.throw(),
            None => {}
        }
    }

    pub fn count(&self) -> usize {
        lock(&self.states).len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_kill_before_the_slot_has_the_run_is_not_lost() {
        let runs = Runs::default();
        let kill = Arc::new(KillSwitch::new().expect("a switch"));
        runs.expect(RunId(1));
        runs.kill(RunId(1));
        runs.arm(RunId(1), &kill);
        assert!(kill.is_thrown());
        runs.forget(RunId(1));
        let next = Arc::new(KillSwitch::new().expect("a switch"));
        runs.arm(RunId(2), &next);
        runs.kill(RunId(1));
        assert!(!next.is_thrown(), "a late kill does not reach the next run");
    }
}
