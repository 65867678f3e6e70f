//! Commands for operators.
//!
//! Knows what to show and to ask. Does not know tables (that is `db/`) and starts no service.

pub mod check;
pub mod init;
