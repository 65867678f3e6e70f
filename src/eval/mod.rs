//! The evaluator: from a project's repositories to rows in the queue.
//!
//! | file | knows |
//! |---|---|
//! | `input` | the words of an input: as configured, and as fetched |
//! | `job` | the words of a job: what is to be evaluated, and what came out |
//! | `schedule` | when which jobset is evaluated: pure |
//!
//! It does not know tables (`db/`), nor who listens to what it announces.

pub mod input;
pub mod job;
pub mod schedule;
