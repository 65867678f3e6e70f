//! THE CORE: every decision, no I/O. See [`event`] for what goes in and [`action`] for what comes out.

pub mod action;
pub mod event;
