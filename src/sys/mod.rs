//! The operating system: threads, children, pipes with deadlines, signals, lock files, systemd.
//!
//! Knows nothing of builds, machines or tables.

pub mod access;
pub mod authorities;
pub mod cgroup;
pub mod child;
pub mod clock;
pub mod heartbeat;
pub mod host;
pub mod kill;
pub mod lockfile;
pub mod pipes;
pub mod process;
pub mod session;
pub mod shared;
pub mod signals;
pub mod space;
pub mod statsd;
pub mod supervised;
pub mod systemd;
pub mod thread;
pub mod watchdog;
