//! The only room that knows tables, columns and SQL (with the files under `sql/`).
//!
//! Knows how to reach PostgreSQL, how to hold few connections, how to listen, which locks mark a
//! running service, and what Hydra's schema looks like. Does not decide anything about builds.

pub mod connect;
pub mod declarative;
pub mod embedded;
pub mod enqueue;
pub mod error;
pub mod evaluations;
pub mod evaluator;
pub mod facts;
pub mod guard;
pub mod history;
pub mod input_builds;
pub mod input_cache;
pub mod jobsets;
pub mod known_output;
pub mod ledger;
pub mod leftovers;
pub mod listen;
pub mod locks;
pub mod observed;
pub mod operate;
pub mod orders;
pub mod os_user;
pub mod past;
pub mod payload;
pub mod pool;
pub mod prune;
pub mod questions;
pub mod queue;
pub mod results;
pub mod schema;
pub mod status;
pub mod tls;
pub mod users;
pub mod wanted;
pub mod writer;

pub use connect::DbTarget;
pub use error::DbError;
pub use listen::{Ear, Listener, Notification};
pub use pool::{Conn, Pool, PooledConn};
