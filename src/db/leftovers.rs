//! What an ended process left: busy step rows, and its report.

use postgres::Client;

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

/// Ends rows as aborted, as Hydra does at start: without a stop time and without a notification.
///
/// # Errors
/// Of the database.
pub fn abort(conn: &mut Conn, steps: &[&BusyStep]) -> Result<(), DbError> {
    let build: Vec<i32> = steps.iter().map(|step| step.build.0).collect();
    let stepnr: Vec<i32> = steps.iter().map(|step| step.stepnr).collect();
    conn.execute(
        include_str!("../../sql/queue/abort_left_steps.sql"),
        &[&build, &stepnr],
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

/// Ends all busy rows as aborted and removes the report, in one transaction. Returns how many rows that were. They are
/// noted, so that [`restore`] can let the next start see whether they were finished after all.
///
/// # Errors
/// Of the database; nothing is changed then.
pub fn abort_all(client: &mut Client) -> Result<u64, DbError> {
    let mut tx = client.transaction()?;
    let noted = tx.query_one(include_str!("../../sql/queue/find_left_busy.sql"), &[])?;
    if noted.get(0) {
        tx.execute(include_str!("../../sql/queue/remember_busy_steps.sql"), &[])?;
    }
    let steps = tx.execute(include_str!("../../sql/queue/abort_busy_steps.sql"), &[])?;
    tx.execute(
        include_str!("../../sql/queue/delete_system_status.sql"),
        &[],
    )?;
    tx.commit()?;
    Ok(steps)
}

/// Makes the rows busy again that [`abort_all`] ended. Returns how many rows that were.
///
/// # Errors
/// Of the database; nothing is changed then.
pub fn restore(conn: &mut Conn) -> Result<u64, DbError> {
    let mut tx = conn.transaction()?;
    let steps = tx.execute(include_str!("../../sql/queue/restore_busy_steps.sql"), &[])?;
    tx.execute(include_str!("../../sql/queue/delete_left_busy.sql"), &[])?;
    tx.commit()?;
    Ok(steps)
}

/// Removes the report.
///
/// # Errors
/// Of the database.
pub fn remove_report(conn: &mut Conn) -> Result<(), DbError> {
    conn.execute(
        include_str!("../../sql/queue/delete_system_status.sql"),
        &[],
    )?;
    Ok(())
}
