//! The operators' commands.

pub mod connect;
pub mod enqueue;
pub mod log;
pub mod serve;
pub mod status;
pub mod table;
