//! The busy step rows that an ended process left.

use super::pool::Conn;
use super::DbError;
use crate::model::{BuildId, UnixSecs};

/// A busy row.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct BusyStep {
    pub build: BuildId,
    pub stepnr: i32,
    pub drv: String,
    pub start: UnixSecs,
    /// Where it was under way; empty if that was not known yet.
    pub machine: String,
    /// Paths of its outputs; `None` in it where one was not known.
    pub outputs: Vec<Option<String>>,
}

impl BusyStep {
    /// Whether it was under way on a machine with a store of its own, as far as the name says.
    pub fn is_elsewhere(&self) -> bool {
        !matches!(
            self.machine.as_str(),
            "" | "localhost" | "ssh://localhost" | "local" | "auto" | "daemon"
        )
    }
}

/// All busy rows, by build and number.
///
/// # Errors
/// Of the database.
pub fn busy_steps(conn: &mut Conn) -> Result<Vec<BusyStep>, DbError> {
    let rows = conn.query(include_str!("../../sql/queue/select_busy_steps.sql"), &[])?;
    Ok(rows
        .iter()
        .map(|row| BusyStep {
            build: BuildId(row.get(0)),
            stepnr: row.get(1),
            drv: row.get::<_, Option<String>>(2).unwrap_or_default(),
            start: UnixSecs::from(row.get::<_, i32>(3)),
            machine: row.get::<_, Option<String>>(4).unwrap_or_default(),
            outputs: row
                .get::<_, Option<Vec<Option<String>>>>(5)
                .unwrap_or_default(),
        })
        .collect())
}

/// Ends a row as aborted, as Hydra does at start: without a stop time and without a notification.
///
/// # Errors
/// Of the database.
pub fn abort(conn: &mut Conn, step: &BusyStep) -> Result<(), DbError> {
    conn.execute(
        include_str!("../../sql/queue/abort_busy_step.sql"),
        &[&step.build.0, &step.stepnr],
    )?;
    Ok(())
}

/// The unfinished builds of a derivation.
///
/// # Errors
/// Of the database.
pub fn builds_of(conn: &mut Conn, drv: &str) -> Result<Vec<BuildId>, DbError> {
    let rows = conn.query(
        include_str!("../../sql/queue/select_builds_of_drv.sql"),
        &[&drv],
    )?;
    Ok(rows.iter().map(|row| BuildId(row.get(0))).collect())
}
