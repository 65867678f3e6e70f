//! Two kinds of time.

use std::ops::{Add, Sub};

/// Seconds since 1970, as Hydra's integer columns hold them.
pub type UnixSecs = i64;

/// The plan's clock in milliseconds. It starts at the Unix time of the process's start and then
/// follows the monotonic clock, so it never goes back and is close to Unix time.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
pub struct Millis(pub u64);

impl Millis {
    /// A time that is never reached.
    pub const NEVER: Millis = Millis(u64::MAX);

    pub fn from_secs(secs: u64) -> Millis {
        Millis(secs * 1000)
    }

    /// Whole seconds, rounded down: comparable with [`UnixSecs`].
    pub fn secs(self) -> UnixSecs {
        (self.0 / 1000) as UnixSecs
    }

    /// Milliseconds from `earlier` to `self`, 0 if `earlier` is later.
    pub fn since(self, earlier: Millis) -> u64 {
        self.0.saturating_sub(earlier.0)
    }
}

impl Add<u64> for Millis {
    type Output = Millis;
    fn add(self, millis: u64) -> Millis {
        Millis(self.0.saturating_add(millis))
    }
}

impl Sub<u64> for Millis {
    type Output = Millis;
    fn sub(self, millis: u64) -> Millis {
        Millis(self.0.saturating_sub(millis))
    }
}
