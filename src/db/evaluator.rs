//! What the evaluator's service reads and writes: which jobsets there are, when they are due, that one is being evaluated.
//!
//! Knows `Projects`, `Jobsets`, `JobsetEvals` as far as that goes, and the evaluator's row of `SystemStatus`. Does not know when a
//! jobset is due (`eval/schedule.rs`), nor what an evaluation writes itself.

use postgres::Client;

use super::guard::Guarded;
use super::DbError;
use crate::model::{JobsetId, ScheduledJobset, Style, UnixSecs};

/// What the evaluator listens to: jobsets and their times have changed.
pub const JOBSET_CHANNELS: [&str; 3] = [
    "jobsets_added",
    "jobsets_deleted",
    "jobset_scheduling_changed",
];
/// Builds have ended or gone: those evaluated one at a time may go on.
pub const BUILD_CHANNELS: [&str; 3] = ["build_finished", "builds_cancelled", "builds_deleted"];
/// Somebody wants the evaluator's report; and it has been renewed.
pub const ASKED: &str = "hydrad_evaluator_status";
pub const ANSWERED: &str = "hydrad_evaluator_told";

/// An evaluation that is about to be started.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Begun {
    pub jobset: JobsetId,
    pub project: String,
    pub name: String,
    /// The trigger that it serves, as it is in the row now.
    pub trigger: Option<UnixSecs>,
}

/// The end of one.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Finished {
    pub jobset: JobsetId,
    /// The trigger it has served; `None` also if it has served none and is to be made again.
    pub served: Option<UnixSecs>,
    /// What ended it without saying so in the row.
    pub error: Option<String>,
    pub at: UnixSecs,
}

/// The jobsets that may be evaluated, and those of `held` that are still there.
///
/// # Errors
/// Of the database, as with all of these.
pub fn jobsets(db: &Guarded, held: &[JobsetId]) -> Result<Vec<ScheduledJobset>, DbError> {
    let held: Vec<i32> = held.iter().map(|id| id.0).collect();
    let sql = include_str!("../../sql/evaluator/select_jobsets.sql");
    let rows = db.read(|conn| conn.query(sql, &[&held]))?;
    let secs = |secs: i32| UnixSecs::from(secs);
    let jobset = |row: &postgres::Row| ScheduledJobset {
        id: JobsetId(row.get(0)),
        project: row.get::<_, String>(1).into(),
        name: row.get::<_, String>(2).into(),
        last_checked: secs(row.get(3)),
        trigger: row.get::<_, Option<i32>>(4).map(secs),
        check_interval_secs: i64::from(row.get::<_, i32>(5)),
        style: Style::from_code(row.get(6)),
        is_enabled: row.get(7),
    };
    Ok(rows.iter().map(jobset).collect())
}

/// Unfinished builds of a jobset's newest evaluation.
pub fn unfinished(db: &Guarded, jobset: JobsetId) -> Result<u64, DbError> {
    let sql = include_str!("../../sql/evaluator/count_unfinished.sql");
    let rows = db.read(|conn| conn.query(sql, &[&jobset.0]))?;
    Ok(u64::try_from(rows[0].get::<_, i64>(0)).unwrap_or(0))
}

/// Says that a jobset is being evaluated; `None` if it is gone or disabled by now.
pub fn begin(db: &Guarded, jobset: JobsetId, now: UnixSecs) -> Result<Option<Begun>, DbError> {
    let sql = include_str!("../../sql/evaluator/begin_evaluation.sql");
    let rows = db.write(|tx| tx.query(sql, &[&jobset.0, &in_column(now)]))?;
    Ok(rows.first().map(|row| Begun {
        jobset,
        project: row.get(0),
        name: row.get(1),
        trigger: row.get::<_, Option<i32>>(2).map(UnixSecs::from),
    }))
}

/// Says that it is not any more, and how that came if it did not say so itself; then whoever listens hears that it failed.
pub fn finish(db: &Guarded, end: &Finished) -> Result<(), DbError> {
    let served = end.served.map(in_column);
    let sql = include_str!("../../sql/evaluator/end_evaluation.sql");
    // Opaque, as that of the evaluation itself, which nobody knows any more.
    let payload = format!("{}.{}\t{}", end.at, std::process::id(), end.jobset);
    db.write(|tx| {
        let rows = tx.query(
            sql,
            &[&end.jobset.0, &served, &end.error, &in_column(end.at)],
        )?;
        let Some(row) = rows.first().filter(|_| end.error.is_some()) else {
            return Ok(());
        };
        let mut channels = vec!["eval_failed"];
        if row.get(0) {
            channels.push("eval_error_changed");
        }
        let payloads = vec![payload.as_str(); channels.len()];
        let sql = include_str!("../../sql/queue/notify_all.sql");
        tx.query(sql, &[&channels, &payloads]).map(drop)
    })
}

/// Nothing looks as if it were being evaluated any more, but for these.
pub fn forget_starts(db: &Guarded, running: &[JobsetId]) -> Result<u64, DbError> {
    let running: Vec<i32> = running.iter().map(|id| id.0).collect();
    let sql = include_str!("../../sql/evaluator/forget_starts.sql");
    db.write(|tx| tx.execute(sql, &[&running]))
}

/// Replaces the evaluator's report and says so.
pub fn report(db: &Guarded, report: &str) -> Result<(), DbError> {
    db.write(|tx| {
        let sql = include_str!("../../sql/evaluator/replace_report.sql");
        tx.execute(sql, &[&report])?;
        let sql = include_str!("../../sql/queue/notify_all.sql");
        tx.query(sql, &[&vec![ANSWERED], &vec![""]]).map(drop)
    })
}

/// There is no evaluator any more.
pub fn remove_report(db: &Guarded) -> Result<(), DbError> {
    let sql = include_str!("../../sql/evaluator/delete_report.sql");
    db.write(|tx| tx.execute(sql, &[]).map(drop))
}

/// Where a jobset is that does not appear among those that may be evaluated.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Standing {
    pub id: JobsetId,
    pub enabled: i32,
    pub project_enabled: bool,
    pub error: Option<String>,
    pub fetch_error: Option<String>,
    pub last_checked: Option<UnixSecs>,
    pub started: Option<UnixSecs>,
}

/// A jobset as its row has it; `None` if there is none of these names.
pub fn standing(
    client: &mut Client,
    project: &str,
    jobset: &str,
) -> Result<Option<Standing>, DbError> {
    let sql = include_str!("../../sql/evaluator/select_standing.sql");
    let row = client.query_opt(sql, &[&project, &jobset])?;
    let secs = |secs: Option<i32>| secs.map(UnixSecs::from);
    Ok(row.map(|row| Standing {
        id: JobsetId(row.get(0)),
        enabled: row.get(1),
        project_enabled: row.get(2),
        error: row.get(3),
        fetch_error: row.get(4),
        last_checked: secs(row.get(5)),
        started: secs(row.get(6)),
    }))
}

/// As Hydra's integer columns take it.
fn in_column(secs: UnixSecs) -> i32 {
    i32::try_from(secs).unwrap_or(i32::MAX)
}
