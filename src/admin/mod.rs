//! The operators' commands.

pub mod check;
pub mod connect;
pub mod enqueue;
pub mod init;
pub mod log;
pub mod serve;
pub mod simulate;
pub mod status;
pub mod table;
