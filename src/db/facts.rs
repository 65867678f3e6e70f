//! What notifications tell of: builds with their outputs, products and metrics; and the rows of RunCommandLogs.
//!
//! Only what plugins need is read: an evaluation's text, say, never is.

use std::collections::HashMap;

use super::pool::Conn;
use super::DbError;
use crate::model::UnixSecs;

/// A build.
#[derive(Clone, PartialEq, Debug, Default)]
pub struct BuildFacts {
    pub id: i32,
    pub finished: bool,
    pub timestamp: i32,
    pub project: String,
    pub jobset: String,
    pub jobset_id: i32,
    pub job: String,
    pub drv_path: String,
    pub start_time: Option<i32>,
    pub stop_time: Option<i32>,
    pub status: Option<i32>,
    pub nix_name: Option<String>,
    pub system: String,
    pub homepage: Option<String>,
    pub description: Option<String>,
    pub license: Option<String>,
    pub is_cached: bool,
    pub size: Option<i64>,
    pub closure_size: Option<i64>,
    pub enable_email: bool,
    pub email_override: String,
    pub maintainers: Option<String>,
}

impl BuildFacts {
    /// `PROJECT:JOBSET:JOB`.
    pub fn job_name(&self) -> String {
        format!("{}:{}:{}", self.project, self.jobset, self.job)
    }
}

/// Whose job a build is.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Job {
    pub project: String,
    pub jobset: String,
    pub job: String,
}

impl Job {
    /// `PROJECT:JOBSET:JOB`.
    pub fn name(&self) -> String {
        format!("{}:{}:{}", self.project, self.jobset, self.job)
    }
}

/// The jobs of these builds, as far as they are still there.
///
/// # Errors
/// Of the database.
pub fn jobs(conn: &mut Conn, builds: &[i32]) -> Result<HashMap<i32, Job>, DbError> {
    let sql = include_str!("../../sql/notify/select_jobs.sql");
    let rows = conn.query(sql, &[&builds])?;
    let job = |row: &postgres::Row| Job {
        project: row.get(1),
        jobset: row.get(2),
        job: row.get(3),
    };
    Ok(rows.iter().map(|row| (row.get(0), job(row))).collect())
}

/// What belongs to a build.
#[derive(Clone, PartialEq, Debug, Default)]
pub struct Results {
    /// Name and path.
    pub outputs: Vec<(String, Option<String>)>,
    pub products: Vec<Product>,
    pub metrics: Vec<Metric>,
}

/// A row of BuildProducts.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Product {
    pub number: i32,
    pub kind: String,
    pub subtype: String,
    pub file_size: Option<i64>,
    pub sha256: Option<String>,
    pub path: Option<String>,
    pub name: String,
    pub default_path: Option<String>,
}

/// A row of BuildMetrics.
#[derive(Clone, PartialEq, Debug)]
pub struct Metric {
    pub name: String,
    pub unit: Option<String>,
    pub value: f64,
}

/// A build; `None` if it was deleted.
///
/// # Errors
/// Of the database, as with all of these.
pub fn build(conn: &mut Conn, id: i32) -> Result<Option<BuildFacts>, DbError> {
    let rows = conn.query(include_str!("../../sql/notify/select_build.sql"), &[&id])?;
    let facts = |row: &postgres::Row| BuildFacts {
        id: row.get(0),
        finished: row.get::<_, i32>(1) != 0,
        timestamp: row.get(2),
        project: row.get(3),
        jobset: row.get(4),
        job: row.get(5),
        drv_path: row.get(6),
        start_time: row.get(7),
        stop_time: row.get(8),
        status: row.get(9),
        nix_name: row.get(10),
        system: row.get(11),
        homepage: row.get(12),
        description: row.get(13),
        license: row.get(14),
        jobset_id: row.get(15),
        is_cached: row.get::<_, Option<i32>>(16).unwrap_or(0) != 0,
        size: row.get(17),
        closure_size: row.get(18),
        enable_email: row.get::<_, i32>(19) != 0,
        email_override: row.get(20),
        maintainers: row.get(21),
    };
    Ok(rows.first().map(facts))
}

/// What belongs to a build.
pub fn results(conn: &mut Conn, id: i32) -> Result<Results, DbError> {
    let outputs = conn.query(include_str!("../../sql/notify/select_outputs.sql"), &[&id])?;
    let products = conn.query(include_str!("../../sql/notify/select_products.sql"), &[&id])?;
    let metrics = conn.query(include_str!("../../sql/notify/select_metrics.sql"), &[&id])?;
    Ok(Results {
        outputs: outputs.iter().map(|r| (r.get(0), r.get(1))).collect(),
        products: products
            .iter()
            .map(|row| Product {
                number: row.get(0),
                kind: row.get(1),
                subtype: row.get(2),
                file_size: row.get(3),
                sha256: row.get(4),
                path: row.get(5),
                name: row.get(6),
                default_path: row.get(7),
            })
            .collect(),
        metrics: metrics
            .iter()
            .map(|row| Metric {
                name: row.get(0),
                unit: row.get(1),
                value: row.get(2),
            })
            .collect(),
    })
}

/// An evaluation, as far as notifications need it.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Evaluation {
    pub id: i32,
    /// Its locked flake reference.
    pub flake: Option<String>,
    /// The first alternative of each input.
    pub inputs: Vec<Input>,
}

/// A row of JobsetEvalInputs.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Input {
    pub name: String,
    pub uri: Option<String>,
    pub revision: Option<String>,
    pub value: Option<String>,
    pub email_responsible: bool,
}

impl Evaluation {
    pub fn input(&self, name: &str) -> Option<&Input> {
        self.inputs.iter().find(|input| input.name == name)
    }
}

/// The newest evaluations that a build is a member of, at most `count_max`.
pub fn evaluations(
    conn: &mut Conn,
    build: i32,
    count_max: usize,
) -> Result<Vec<Evaluation>, DbError> {
    let count_max = i64::try_from(count_max).unwrap_or(i64::MAX);
    let sql = include_str!("../../sql/notify/select_evaluations.sql");
    let rows = conn.query(sql, &[&build, &count_max])?;
    with_inputs(conn, &rows)
}

/// One evaluation; none if it was deleted.
pub fn evaluation(conn: &mut Conn, id: i32) -> Result<Vec<Evaluation>, DbError> {
    let rows = conn.query(
        include_str!("../../sql/notify/select_evaluation.sql"),
        &[&id],
    )?;
    with_inputs(conn, &rows)
}

fn with_inputs(conn: &mut Conn, rows: &[postgres::Row]) -> Result<Vec<Evaluation>, DbError> {
    let mut evaluations: Vec<Evaluation> = rows
        .iter()
        .map(|row| Evaluation {
            id: row.get(0),
            flake: row.get(1),
            inputs: Vec::new(),
        })
        .collect();
    let ids: Vec<i32> = evaluations.iter().map(|e| e.id).collect();
    let sql = include_str!("../../sql/notify/select_evaluation_inputs.sql");
    for row in conn.query(sql, &[&ids])? {
        let of: i32 = row.get(0);
        if let Some(evaluation) = evaluations.iter_mut().find(|e| e.id == of) {
            evaluation.inputs.push(Input {
                name: row.get(1),
                uri: row.get(2),
                revision: row.get(3),
                value: row.get(4),
                email_responsible: row.get(5),
            });
        }
    }
    Ok(evaluations)
}

/// The build of the same job that ended before this one.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Previous {
    pub id: i32,
    pub status: Option<i32>,
}

/// The build of the same job that ended before this one; `None` if there is none.
pub fn previous(conn: &mut Conn, build: i32) -> Result<Option<Previous>, DbError> {
    let rows = conn.query(
        include_str!("../../sql/notify/select_previous.sql"),
        &[&build],
    )?;
    Ok(rows.first().map(|row| Previous {
        id: row.get(0),
        status: row.get(1),
    }))
}

/// An input that is another revision than it was for an earlier build.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ChangedInput {
    pub name: String,
    /// `git` or `hg`.
    pub kind: String,
    pub uri: String,
    pub old: String,
    pub new: String,
    pub email_responsible: bool,
}

/// What lies between two builds of a job, as far as it is under version control.
pub fn changed_inputs(
    conn: &mut Conn,
    build: i32,
    earlier: i32,
) -> Result<Vec<ChangedInput>, DbError> {
    let sql = include_str!("../../sql/notify/select_changed_inputs.sql");
    let rows = conn.query(sql, &[&build, &earlier])?;
    let input = |row: &postgres::Row| ChangedInput {
        name: row.get(0),
        kind: row.get(1),
        uri: row.get(2),
        old: row.get(3),
        new: row.get(4),
        email_responsible: row.get(5),
    };
    Ok(rows.iter().map(input).collect())
}

/// How far the new builds of an evaluation are.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Progress {
    pub eval: i32,
    /// All have ended.
    pub finished: bool,
    /// Once they have: what ended up to here was told of before; 0: nothing was.
    pub since: i32,
    /// When the last of them ended.
    pub upto: i32,
}

/// How far the evaluations are that made these builds, and these evaluations.
pub fn progress(conn: &mut Conn, builds: &[i32], evals: &[i32]) -> Result<Vec<Progress>, DbError> {
    let sql = include_str!("../../sql/notify/select_progress.sql");
    let rows = conn.query(sql, &[&builds, &evals])?;
    let progress = |row: &postgres::Row| Progress {
        eval: row.get(0),
        finished: row.get(1),
        since: row.get(2),
        upto: row.get(3),
    };
    Ok(rows.iter().map(progress).collect())
}

/// The newest evaluations that have not ended.
pub fn open_evaluations(conn: &mut Conn, count_max: usize) -> Result<Vec<i32>, DbError> {
    let count_max = i64::try_from(count_max).unwrap_or(i64::MAX);
    let sql = include_str!("../../sql/notify/select_open_evaluations.sql");
    let rows = conn.query(sql, &[&count_max])?;
    Ok(rows.iter().map(|row| row.get(0)).collect())
}

/// The builds of an evaluation that ended after `since`, and otherwise than the one before.
pub fn evaluation_changes(
    conn: &mut Conn,
    eval: i32,
    since: i32,
    count_max: usize,
) -> Result<Vec<i32>, DbError> {
    let count_max = i64::try_from(count_max).unwrap_or(i64::MAX);
    let sql = include_str!("../../sql/notify/select_evaluation_changes.sql");
    let rows = conn.query(sql, &[&eval, &since, &count_max])?;
    Ok(rows.iter().map(|row| row.get(0)).collect())
}

/// Those among builds that an evaluation made.
pub fn made_by_evaluations(conn: &mut Conn, builds: &[i32]) -> Result<Vec<i32>, DbError> {
    let sql = include_str!("../../sql/notify/select_new_members.sql");
    let rows = conn.query(sql, &[&builds])?;
    Ok(rows.iter().map(|row| row.get(0)).collect())
}

/// Announces events of our own: rows of the ledger and NOTIFY.
pub fn announce(conn: &mut Conn, channel: &str, payloads: &[String]) -> Result<(), DbError> {
    let channels = vec![channel; payloads.len()];
    let sql = include_str!("../../sql/queue/notify_all.sql");
    conn.query(sql, &[&channels, &payloads]).map(drop)
}

/// A jobset's error, and who is to hear of it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct JobsetError {
    pub project: String,
    pub jobset: String,
    /// Empty: there is none any more.
    pub text: String,
    /// The address of the project's owner.
    pub owner: String,
    pub owner_is_told: bool,
}

/// `None` if the jobset was deleted.
pub fn jobset_error(conn: &mut Conn, jobset: i32) -> Result<Option<JobsetError>, DbError> {
    let sql = include_str!("../../sql/notify/select_eval_error.sql");
    let rows = conn.query(sql, &[&jobset])?;
    Ok(rows.first().map(|row| JobsetError {
        project: row.get(0),
        jobset: row.get(1),
        text: row.get(2),
        owner: row.get(3),
        owner_is_told: row.get(4),
    }))
}

/// How a command of RunCommand ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct CommandEnd {
    /// It could not be started: the system's number.
    pub error_number: Option<i32>,
    pub exit_code: Option<i32>,
    pub signal: Option<i32>,
    pub core_dumped: Option<bool>,
}

/// A command begins; its row's id and uuid.
pub fn begin_command(
    conn: &mut Conn,
    matcher: &str,
    build: i32,
    command: &str,
    now: UnixSecs,
) -> Result<(i32, String), DbError> {
    let now = i32::try_from(now).unwrap_or(i32::MAX);
    let sql = include_str!("../../sql/notify/begin_command.sql");
    let rows = conn.query(sql, &[&matcher, &build, &command, &now])?;
    Ok((rows[0].get(0), rows[0].get(1)))
}

/// A command has ended.
pub fn end_command(
    conn: &mut Conn,
    id: i32,
    end: CommandEnd,
    now: UnixSecs,
) -> Result<(), DbError> {
    let now = i32::try_from(now).unwrap_or(i32::MAX);
    let sql = include_str!("../../sql/notify/end_command.sql");
    let end = [
        &id as &(dyn postgres::types::ToSql + Sync),
        &now,
        &end.error_number,
        &end.exit_code,
        &end.signal,
        &end.core_dumped,
    ];
    conn.execute(sql, &end).map(drop)
}

/// A build that may define the jobsets of its project.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Declaring {
    pub project: String,
    pub jobset: String,
    pub jobset_id: i32,
    pub job: String,
    /// The project is a declarative one.
    pub is_declarative: bool,
    /// It belongs to the jobset's newest evaluation.
    pub is_current: bool,
    /// Its first output.
    pub path: Option<String>,
}

/// `None` if the build was deleted.
pub fn declaring(conn: &mut Conn, build: i32) -> Result<Option<Declaring>, DbError> {
    let sql = include_str!("../../sql/notify/select_declaring.sql");
    let rows = conn.query(sql, &[&build])?;
    Ok(rows.first().map(|row| Declaring {
        project: row.get(0),
        jobset: row.get(1),
        jobset_id: row.get(2),
        job: row.get(3),
        is_declarative: row.get(4),
        is_current: row.get(5),
        path: row.get(6),
    }))
}

/// Gives a jobset an error; if it is another one than before, `channel` and `payload` announce it in the same transaction.
pub fn set_jobset_error(
    conn: &mut Conn,
    jobset: i32,
    text: &str,
    now: UnixSecs,
    (channel, payload): (&str, &str),
) -> Result<(), DbError> {
    let now = i32::try_from(now).unwrap_or(i32::MAX);
    let mut tx = conn.transaction()?;
    let sql = include_str!("../../sql/notify/set_jobset_error.sql");
    let rows = tx.query(sql, &[&jobset, &text, &now])?;
    if rows.first().is_some_and(|row| row.get(0)) {
        let sql = include_str!("../../sql/queue/notify_all.sql");
        tx.query(sql, &[&vec![channel], &vec![payload]])?;
    }
    tx.commit()
}

/// Whether the jobset of a build, and its project, let its outputs be run.
pub fn dynamic_allowed(conn: &mut Conn, build: i32) -> Result<(bool, bool), DbError> {
    let sql = include_str!("../../sql/notify/select_dynamic_allowed.sql");
    let rows = conn.query(sql, &[&build])?;
    let allowed = rows.first().map(|row| (row.get(0), row.get(1)));
    Ok(allowed.unwrap_or((false, false)))
}
