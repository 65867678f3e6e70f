//! What another queue runner does, as its rows show it.

use super::pool::Conn;
use super::DbError;
use crate::model::{BuildId, UnixSecs};

/// A row of an attempt.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ObservedStep {
    pub build: BuildId,
    pub stepnr: i32,
    pub drv: String,
    /// 0: it has ended.
    pub busy: i32,
    pub status: Option<i32>,
    pub machine: String,
    pub start: UnixSecs,
}

/// Attempts under way, those that ended since a time, and these ones; in the order of their starts.
///
/// # Errors
/// Of the database.
pub fn steps(
    conn: &mut Conn,
    since: UnixSecs,
    known: &[(BuildId, i32)],
) -> Result<Vec<ObservedStep>, DbError> {
    let since = i32::try_from(since).unwrap_or(i32::MAX);
    let (builds, numbers): (Vec<i32>, Vec<i32>) = known
        .iter()
        .map(|(build, stepnr)| (build.0, *stepnr))
        .unzip();
    let rows = conn.query(
        include_str!("../../sql/queue/select_observed_steps.sql"),
        &[&since, &builds, &numbers],
    )?;
    Ok(rows
        .iter()
        .map(|row| ObservedStep {
            build: BuildId(row.get(0)),
            stepnr: row.get(1),
            drv: row.get::<_, Option<String>>(2).unwrap_or_default(),
            busy: row.get(3),
            status: row.get(4),
            machine: row.get::<_, Option<String>>(5).unwrap_or_default(),
            start: UnixSecs::from(row.get::<_, i32>(6)),
        })
        .collect())
}

/// Those of these builds that have ended, with their status.
///
/// # Errors
/// Of the database.
pub fn ended_builds(
    conn: &mut Conn,
    builds: &[i32],
) -> Result<Vec<(BuildId, Option<i32>)>, DbError> {
    let rows = conn.query(
        include_str!("../../sql/queue/select_ended_builds.sql"),
        &[&builds],
    )?;
    Ok(rows
        .iter()
        .map(|row| (BuildId(row.get(0)), row.get(1)))
        .collect())
}
