//! Text to typed values: hydra.conf, the settings it holds, the machines file.
//!
//! Knows the names of settings and the syntax of the files. Does not know what a setting is used
//! for, opens no connection and starts no program.

pub mod declarative;
pub mod fields;
pub mod hydra_conf;
pub mod inputs;
pub mod machines;
pub mod notify;
pub mod pattern;
pub mod project;
pub mod settings;

pub use hydra_conf::{Document, HydraConfError, Origin};
pub use machines::{MachineLine, MachinesFiles, MachinesFromEnv};
pub use settings::{ConfigError, Override, Settings};
