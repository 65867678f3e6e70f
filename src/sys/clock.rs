//! The clocks: Unix seconds for rows, and the plan's monotonic milliseconds.

use std::time::{Instant, SystemTime, UNIX_EPOCH};

use crate::model::{Millis, UnixSecs};

/// Seconds since 1970 by the wall clock.
pub fn unix_now() -> UnixSecs {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |d| d.as_secs() as UnixSecs)
}

/// The plan's clock: Unix time when it was made, monotonic from then on.
#[derive(Clone, Copy, Debug)]
pub struct PlanClock {
    origin: Instant,
    origin_ms: u64,
}

impl PlanClock {
    pub fn start() -> PlanClock {
        let since_epoch = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .unwrap_or_default();
        PlanClock {
            origin: Instant::now(),
            origin_ms: since_epoch.as_millis() as u64,
        }
    }

    pub fn now(&self) -> Millis {
        Millis(self.origin_ms + self.origin.elapsed().as_millis() as u64)
    }

    /// The instant at which [`PlanClock::now`] reaches `at`; `None` if it is too far away to say.
    pub fn instant(&self, at: Millis) -> Option<Instant> {
        let ms = at.0.saturating_sub(self.origin_ms);
        self.origin
            .checked_add(std::time::Duration::from_millis(ms))
    }
}
