//! What those need who only look at a queue: sessions that cannot write, and none of a queue runner's locks, folders and
//! writers.

use std::sync::Arc;

use crossbeam_channel::Receiver;

use super::driver::Inbox;
use super::{context, stores, Context, Error};
use crate::config::settings::Settings;
use crate::db::connect::DbTarget;
use crate::db::pool::Pool;
use crate::db::{schema, writer};
use crate::store::logs::LogStore;
use crate::store::roots::GcRoots;

/// The name under which such sessions show in PostgreSQL.
pub const APPLICATION_NAME: &str = "hydrad-observer";

/// Database connections of an observer, beside one that may listen.
const CONNECTIONS_MAX: u32 = 4;

pub struct Observer {
    pub context: Arc<Context>,
    /// What would go to the plan's thread.
    pub inbox: Receiver<Inbox>,
    /// Nobody writes.
    _writer: Receiver<writer::Message>,
}

/// Checks that the queue of this database can be read and worked off by these settings.
///
/// # Errors
/// What would also keep the queue runner from starting, except for locks, sessions of others and hydrad's own tables.
pub fn observe(settings: &Settings, target: &DbTarget) -> Result<Observer, Error> {
    let stores = stores(settings, false)?;
    let target = target.clone().read_only();
    let mut client = target.connect(APPLICATION_NAME)?;
    let schema = schema::check_schema(&mut client)?;
    for warning in schema.serve_reader()? {
        log::warn!("{warning}");
    }
    drop(client);
    let connections = settings.max_db_connections.min(CONNECTIONS_MAX);
    let pool = Pool::new(target.clone(), connections, APPLICATION_NAME);
    let parts = (
        LogStore::reader(&settings.data_dir),
        GcRoots::reader(&settings.gc_roots_dir),
    );
    let (context, ends) = context(
        settings,
        &target,
        (pool, schema.features),
        parts,
        stores,
        None,
        None,
    );
    Ok(Observer {
        context,
        inbox: ends.plan,
        _writer: ends.writer,
    })
}
