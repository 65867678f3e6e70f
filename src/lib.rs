//! hydrad: the complete backend of a Nix build farm as one synchronous, threaded daemon.
//!
//! The rooms, and which may use which, are in ARCHITECTURE.md:
//!
//! ```text
//! main -> queue, eval, notify, admin -> web -> store, db, plan -> wire, nix, config -> model -> base
//! sys: used by the services, store and db only
//! ```

pub mod admin;
pub mod base;
pub mod cli;
pub mod config;
pub mod db;
pub mod eval;
pub mod model;
pub mod nix;
pub mod notify;
pub mod plan;
pub mod queue;
pub mod store;
pub mod sys;
pub mod web;
pub mod wire;
