//! What the queue monitor reads.

use super::pool::Conn;
use super::DbError;
use crate::model::{BuildId, JobsetId, UnixSecs};
use crate::plan::event::QueuedBuild;

/// Unfinished builds with at least this id, most urgent first, at most `limit`.
///
/// # Errors
/// Of the database.
pub fn builds_from(
    conn: &mut Conn,
    from: BuildId,
    limit: i64,
) -> Result<Vec<QueuedBuild>, DbError> {
    let rows = conn.query(
        include_str!("../../sql/queue/select_builds_from.sql"),
        &[&from.0, &limit],
    )?;
    Ok(rows.iter().map(queued_build).collect())
}

/// Those of these builds that are unfinished.
///
/// # Errors
/// Of the database.
pub fn builds(conn: &mut Conn, ids: &[i32]) -> Result<Vec<QueuedBuild>, DbError> {
    let rows = conn.query(include_str!("../../sql/queue/select_builds.sql"), &[&ids])?;
    Ok(rows.iter().map(queued_build).collect())
}

fn queued_build(row: &postgres::Row) -> QueuedBuild {
    let limit = |value: i32| u32::try_from(value).unwrap_or(0);
    QueuedBuild {
        id: BuildId(row.get(0)),
        jobset: JobsetId(row.get(1)),
        drv: row.get::<_, &str>(2).into(),
        max_silent_secs: limit(row.get(3)),
        timeout_secs: limit(row.get(4)),
        global_priority: row.get(5),
        local_priority: row.get(6),
    }
}

/// All unfinished builds with their global priority, in no order.
///
/// # Errors
/// Of the database.
pub fn unfinished(conn: &mut Conn) -> Result<Vec<(BuildId, i32)>, DbError> {
    let rows = conn.query(
        include_str!("../../sql/queue/select_unfinished_list.sql"),
        &[],
    )?;
    Ok(rows
        .iter()
        .map(|row| (BuildId(row.get(0)), row.get(1)))
        .collect())
}

/// Builds that go before everything else, and until when; at most `limit`.
///
/// # Errors
/// Of the database.
pub fn emergencies(
    conn: &mut Conn,
    now: UnixSecs,
    limit: i64,
) -> Result<Vec<(BuildId, Option<UnixSecs>)>, DbError> {
    let rows = conn.query(
        include_str!("../../sql/queue/select_emergencies.sql"),
        &[&now, &limit],
    )?;
    Ok(rows
        .iter()
        .map(|row| (BuildId(row.get(0)), row.get(1)))
        .collect())
}

/// A jobset as the plan wants to know it.
#[derive(Clone, PartialEq, Debug)]
pub struct Jobset {
    /// `project:jobset`.
    pub name: String,
    pub shares: u32,
    /// Start and duration (seconds) of the steps that used machine time since `since`.
    pub history: Vec<(UnixSecs, u32)>,
}

/// `None` if the jobset was deleted.
///
/// # Errors
/// Of the database.
pub fn jobset(conn: &mut Conn, id: JobsetId, since: UnixSecs) -> Result<Option<Jobset>, DbError> {
    let mut tx = conn.transaction()?;
    let rows = tx.query(include_str!("../../sql/queue/select_jobset.sql"), &[&id.0])?;
    let Some(row) = rows.first() else {
        return Ok(None);
    };
    let (name, shares): (String, i32) = (row.get(0), row.get(1));
    let since = i32::try_from(since).unwrap_or(i32::MAX);
    let rows = tx.query(
        include_str!("../../sql/queue/select_jobset_history.sql"),
        &[&id.0, &since],
    )?;
    let history = rows
        .iter()
        .map(|row| {
            (
                UnixSecs::from(row.get::<_, i32>(0)),
                u32::try_from(row.get::<_, i32>(1)).unwrap_or(0),
            )
        })
        .collect();
    tx.commit()?;
    Ok(Some(Jobset {
        name,
        shares: u32::try_from(shares).unwrap_or(1).max(1),
        history,
    }))
}

/// The shares of these jobsets.
///
/// # Errors
/// Of the database.
pub fn jobset_shares(conn: &mut Conn, ids: &[i32]) -> Result<Vec<(JobsetId, u32)>, DbError> {
    let rows = conn.query(
        include_str!("../../sql/queue/select_jobset_shares.sql"),
        &[&ids],
    )?;
    let shares = |row: &postgres::Row| u32::try_from(row.get::<_, i32>(1)).unwrap_or(1).max(1);
    Ok(rows
        .iter()
        .map(|row| (JobsetId(row.get(0)), shares(row)))
        .collect())
}
