//! What a forecast of the queue needs to know of the past, and of the evaluations that wait.

use super::pool::Conn;
use super::DbError;
use crate::model::BuildId;

/// A step that succeeded.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct PastStep {
    pub drv: String,
    pub system: String,
    /// Copying included.
    pub secs: u32,
}

/// The newest successful steps, at most `limit`.
///
/// # Errors
/// Of the database.
pub fn past_steps(conn: &mut Conn, limit: i64) -> Result<Vec<PastStep>, DbError> {
    let rows = conn.query(
        include_str!("../../sql/queue/select_step_durations.sql"),
        &[&limit],
    )?;
    Ok(rows
        .iter()
        .map(|row| PastStep {
            drv: row.get(0),
            system: row.get(1),
            secs: u32::try_from(row.get::<_, i32>(2)).unwrap_or(0),
        })
        .collect())
}

/// An evaluation that is not done.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct OpenEvaluation {
    pub id: i32,
    /// `project:jobset`.
    pub jobset: String,
    /// Its unfinished builds.
    pub builds: Vec<BuildId>,
}

/// Evaluations with unfinished builds, by id.
///
/// # Errors
/// Of the database.
pub fn open_evaluations(conn: &mut Conn) -> Result<Vec<OpenEvaluation>, DbError> {
    let rows = conn.query(
        include_str!("../../sql/queue/select_unfinished_evaluations.sql"),
        &[],
    )?;
    let mut evaluations: Vec<OpenEvaluation> = Vec::new();
    for row in &rows {
        let (id, build) = (row.get(0), BuildId(row.get(2)));
        match evaluations.last_mut() {
            Some(evaluation) if evaluation.id == id => evaluation.builds.push(build),
            _ => evaluations.push(OpenEvaluation {
                id,
                jobset: row.get(1),
                builds: vec![build],
            }),
        }
    }
    Ok(evaluations)
}
