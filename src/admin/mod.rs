//! The operators' commands.

pub mod build;
pub mod cache;
pub mod check;
pub mod check_notifier;
pub mod clear_failed;
pub mod connect;
pub mod create_user;
pub mod enqueue;
pub mod explain;
pub mod forecast;
pub mod gc_roots;
pub mod init;
pub mod log;
pub mod machines;
pub mod notifications;
pub mod orders;
pub mod over_http;
pub mod password;
pub mod prune;
pub mod queued;
pub mod serve;
pub mod simulate;
pub mod status;
pub mod system_status;
pub mod table;
