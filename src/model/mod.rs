//! The words that two or more rooms share: ids, statuses, build results, time.
//!
//! Knows no tables, no bytes on a wire and no threads.

pub mod dates;
pub mod ids;
pub mod jobset;
pub mod output;
pub mod status;
pub mod time;

pub use ids::{BuildId, JobsetId, MachineId, RunId, Ticket};
pub use jobset::{ScheduledJobset, Style};
pub use output::{BuildMetric, BuildOutput, BuildProduct, Substituted};
pub use status::{BuildStatus, Phase};
pub use time::{Millis, UnixSecs};
