//! What the threads of the queue runner count. Leaves: nobody waits for them.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// A number that only rises.
#[derive(Default, Debug)]
pub struct Count(AtomicU64);

impl Count {
    pub fn add(&self, by: u64) {
        self.0.fetch_add(by, Ordering::Relaxed);
    }

    pub fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// Time that only grows.
#[derive(Default, Debug)]
pub struct Spent(Count);

impl Spent {
    pub fn add(&self, spent: Duration) {
        self.0
            .add(u64::try_from(spent.as_micros()).unwrap_or(u64::MAX));
    }

    pub fn get(&self) -> Duration {
        Duration::from_micros(self.0.get())
    }
}

/// A thread that waits and works in turn.
#[derive(Default, Debug)]
pub struct Turns {
    pub waiting: Spent,
    pub working: Spent,
    pub wakeups: Count,
}

impl Turns {
    /// It waited from `since` on and is awake now.
    pub fn woken(&self, since: Instant) -> Instant {
        let now = Instant::now();
        self.waiting.add(now - since);
        self.wakeups.add(1);
        now
    }

    /// It worked from `since` on and goes to sleep now.
    pub fn done(&self, since: Instant) -> Instant {
        let now = Instant::now();
        self.working.add(now - since);
        now
    }
}

/// See the module.
#[derive(Default, Debug)]
pub struct Meters {
    pub plan: Turns,
    pub monitor: Turns,
    /// Lists of the unfinished builds.
    pub lists_begun: Count,
    pub lists_read: Count,
    /// Rows of builds, and the time it took to read them.
    pub builds_read: Count,
    pub builds_read_time: Spent,
}
