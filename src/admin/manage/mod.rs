//! Managing projects, jobsets and inputs without a web server: `hydrad project`, `jobset`, `input` and `apply`.
//!
//! | file | knows |
//! |---|---|
//! | `change` | how a change is made in a transaction, shown, and confirmed |
//! | `project`, `jobset`, `input` | the commands for one of each |
//! | `evaluate` | `hydrad jobset evaluate` |
//! | `apply` | `hydrad apply` |
//!
//! What is written, and what it entails, is what Hydra's web interface writes (`db/jobsets.rs`).

pub mod apply;
pub mod change;
pub mod evaluate;
pub mod input;
pub mod jobset;
pub mod project;
