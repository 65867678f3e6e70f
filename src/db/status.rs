//! What the status pages read.

use super::pool::Conn;
use super::DbError;
use crate::model::{BuildId, JobsetId, UnixSecs};

/// A row of `Builds`, finished or not, with its jobset's names.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct BuildRow {
    pub id: BuildId,
    pub drv: String,
    pub jobset: JobsetId,
    pub project: String,
    pub jobset_name: String,
    pub job: String,
    pub name: String,
    pub timestamp: UnixSecs,
    pub max_silent_secs: i32,
    pub timeout_secs: i32,
    pub local_priority: i32,
    pub global_priority: i32,
    pub is_finished: bool,
    pub status: Option<i32>,
    pub start: Option<UnixSecs>,
    pub stop: Option<UnixSecs>,
}

/// One build; `None` if there is none with this number.
///
/// # Errors
/// Of the database.
pub fn build(conn: &mut Conn, id: BuildId) -> Result<Option<BuildRow>, DbError> {
    let rows = conn.query(
        include_str!("../../sql/queue/select_build_status.sql"),
        &[&id.0],
    )?;
    let secs = |secs: Option<i32>| secs.map(UnixSecs::from);
    Ok(rows.first().map(|row| BuildRow {
        id: BuildId(row.get(0)),
        drv: row.get(1),
        jobset: JobsetId(row.get(2)),
        project: row.get(3),
        jobset_name: row.get(4),
        job: row.get(5),
        name: row.get(6),
        timestamp: UnixSecs::from(row.get::<_, i32>(7)),
        max_silent_secs: row.get(8),
        timeout_secs: row.get(9),
        local_priority: row.get(10),
        global_priority: row.get(11),
        is_finished: row.get(12),
        status: row.get(13),
        start: secs(row.get(14)),
        stop: secs(row.get(15)),
    }))
}

/// Builds whose end no notifier has delivered yet: how many, and since when the oldest waits.
///
/// # Errors
/// Of the database.
pub fn pending_notifications(conn: &mut Conn) -> Result<(u64, Option<UnixSecs>), DbError> {
    let rows = conn.query(
        include_str!("../../sql/queue/count_pending_notifications.sql"),
        &[],
    )?;
    let count: i64 = rows[0].get(0);
    Ok((u64::try_from(count).unwrap_or(0), rows[0].get(1)))
}
