//! Stores and what lies on disk beside them: the local store, build logs, GC roots.
//!
//! Knows paths and how to copy; knows no tables and no machines.

pub mod binary_cache;
pub mod cat;
pub mod closure;
pub mod compress;
pub mod destination;
pub mod local;
pub mod logs;
pub mod nix_conf;
pub mod nix_copy;
pub mod objects;
pub mod presence;
pub mod roots;
pub mod s3;
pub mod spool;
pub mod uri;
