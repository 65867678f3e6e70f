//! The evaluator: from a project's repositories to rows in the queue.
//!
//! | file | knows |
//! |---|---|
//! | `harmless` | git as evaluations start it |
//! | `input` | the words of an input: as configured, and as fetched |
//! | `inputs` | how each type of input is fetched into the store |
//! | `job` | the words of a job: what is to be evaluated, and what came out |
//! | `jobs` | evaluating the jobs of a source, in processes of the installed Nix |
//! | `jobset` | one evaluation, from its inputs to its rows |
//! | `schedule` | when which jobset is evaluated: pure |
//! | `service` | the service around the schedule, with a child process for each evaluation |
//!
//! It does not know tables (`db/`), nor who listens to what it announces.

pub mod harmless;
pub mod input;
pub mod inputs;
pub mod job;
pub mod jobs;
pub mod jobset;
pub mod schedule;
pub mod service;
