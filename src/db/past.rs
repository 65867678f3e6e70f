//! What the tables tell about a build or a derivation, for `explain`.

use postgres::{Client, Row};

use super::DbError;
use crate::model::{BuildId, BuildStatus, UnixSecs};

/// A row of `Builds`.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct BuildRow {
    pub id: BuildId,
    /// `project:jobset:job`.
    pub job: String,
    pub drv: String,
    pub finished: bool,
    /// The number, and its meaning if it is one we know.
    pub status: Option<(i32, Option<BuildStatus>)>,
    pub queued: UnixSecs,
    pub start: Option<UnixSecs>,
    pub stop: Option<UnixSecs>,
    pub cached: bool,
    pub global_priority: i32,
    pub local_priority: i32,
}

/// A row of `BuildSteps`.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct StepRow {
    pub build: BuildId,
    pub stepnr: i32,
    pub drv: String,
    pub busy: i32,
    pub status: Option<(i32, Option<BuildStatus>)>,
    pub message: Option<String>,
    pub start: Option<UnixSecs>,
    pub stop: Option<UnixSecs>,
    pub machine: String,
    pub propagated_from: Option<BuildId>,
}

/// Everything the tables tell.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct History {
    pub build: Option<BuildRow>,
    /// Failed steps of the build, the newest first.
    pub failures: Vec<StepRow>,
    /// Running steps of the build.
    pub busy: Vec<StepRow>,
    /// The newest attempts of the derivation: of the step that failed the build, if one did, else of the top-level one.
    pub attempts: Vec<StepRow>,
    /// Outputs of that derivation in `FailedPaths`.
    pub cached_failures: Vec<String>,
    /// Unfinished builds of the derivation.
    pub unfinished: Vec<BuildId>,
}

fn status(code: Option<i32>) -> Option<(i32, Option<BuildStatus>)> {
    code.map(|code| (code, BuildStatus::from_code(code)))
}

fn secs(row: &Row, column: usize) -> Option<UnixSecs> {
    row.get::<_, Option<i32>>(column).map(UnixSecs::from)
}

fn step(row: &Row) -> StepRow {
    StepRow {
        build: BuildId(row.get(0)),
        stepnr: row.get(1),
        drv: row.get::<_, Option<String>>(2).unwrap_or_default(),
        busy: row.get(3),
        status: status(row.get(4)),
        message: row.get(5),
        start: secs(row, 6),
        stop: secs(row, 7),
        machine: row.get(8),
        propagated_from: row.get::<_, Option<i32>>(9).map(BuildId),
    }
}

/// What is known of a build; its `build` is `None` if there is none.
///
/// # Errors
/// Of the database.
pub fn of_build(client: &mut Client, id: BuildId) -> Result<History, DbError> {
    let sql = include_str!("../../sql/admin/select_build.sql");
    let Some(row) = client.query_opt(sql, &[&id.0])? else {
        return Ok(History::default());
    };
    let build = BuildRow {
        id,
        job: row.get(1),
        drv: row.get(2),
        finished: row.get(3),
        status: status(row.get(4)),
        queued: UnixSecs::from(row.get::<_, i32>(5)),
        start: secs(&row, 6),
        stop: secs(&row, 7),
        cached: row.get(8),
        global_priority: row.get(9),
        local_priority: row.get(10),
    };
    let mut steps = |sql: &str| -> Result<Vec<StepRow>, DbError> {
        Ok(client.query(sql, &[&id.0])?.iter().map(step).collect())
    };
    let failures = steps(include_str!("../../sql/admin/select_build_failures.sql"))?;
    let busy = steps(include_str!("../../sql/admin/select_busy_of_build.sql"))?;
    let succeeded = matches!(build.status, Some((0 | 6, _)));
    let failed = failures
        .iter()
        .find(|step| build.finished && !succeeded && !step.drv.is_empty());
    let drv = failed.map_or(&build.drv, |step| &step.drv).clone();
    let of_drv = of_drv(client, &drv)?;
    Ok(History {
        build: Some(build),
        failures,
        busy,
        ..of_drv
    })
}

/// What is known of a derivation.
///
/// # Errors
/// Of the database.
pub fn of_drv(client: &mut Client, drv: &str) -> Result<History, DbError> {
    let sql = include_str!("../../sql/admin/select_drv_steps.sql");
    let attempts = client.query(sql, &[&drv])?.iter().map(step).collect();
    let sql = include_str!("../../sql/admin/select_cached_failures.sql");
    let cached_failures = client.query(sql, &[&drv])?;
    let sql = include_str!("../../sql/admin/select_unfinished_of_drv.sql");
    let unfinished = client.query(sql, &[&drv])?;
    Ok(History {
        attempts,
        cached_failures: cached_failures.iter().map(|row| row.get(0)).collect(),
        unfinished: unfinished.iter().map(|row| BuildId(row.get(0))).collect(),
        ..History::default()
    })
}
