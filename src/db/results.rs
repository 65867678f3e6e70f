//! What came of evaluations: their inputs, their jobs and how those ended. Only reads.

use postgres::{GenericClient, Row};

use super::DbError;
use crate::model::BuildStatus;

const SELECT_EVALUATIONS: &str = include_str!("../../sql/results/select_evaluations.sql");

/// An evaluation. Times are Unix seconds, or seconds.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Evaluation {
    pub id: i32,
    pub project: String,
    pub jobset: String,
    pub at: i32,
    pub fetching_secs: i32,
    pub evaluating_secs: i32,
    /// Otherwise it is the same as the one before, and has no jobs of its own.
    pub changed: bool,
    /// The locked flake, if it was one.
    pub flake: Option<String>,
    pub nix_expr_input: Option<String>,
    pub nix_expr_path: Option<String>,
    /// Jobs that could not be evaluated, as Hydra words it; empty if there was none.
    pub error: String,
    pub counts: Counts,
}

impl Evaluation {
    /// `project:jobset`.
    pub fn jobset_name(&self) -> String {
        format!("{}:{}", self.project, self.jobset)
    }
}

/// Builds of an evaluation.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Counts {
    pub all: i64,
    /// Made by this evaluation.
    pub new: i64,
    pub succeeded: i64,
    pub failed: i64,
    pub queued: i64,
}

/// A job of an evaluation, and its build.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Job {
    pub job: String,
    pub system: String,
    pub build: i32,
    /// The number of how it ended; `None` while it is queued.
    pub status: Option<i32>,
    /// Made by this evaluation.
    pub is_new: bool,
    pub nix_name: Option<String>,
}

impl Job {
    pub fn status_words(&self) -> &'static str {
        match self.status {
            None => "queued",
            Some(code) => BuildStatus::from_code(code).map_or("unknown", BuildStatus::text),
        }
    }
}

/// An input of an evaluation as it was fetched.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct EvaluationInput {
    pub name: String,
    pub kind: String,
    pub uri: Option<String>,
    pub revision: Option<String>,
    pub value: Option<String>,
    /// The build it came from.
    pub dependency: Option<i32>,
    pub path: Option<String>,
}

/// # Errors
/// Of the database.
pub fn evaluation(client: &mut impl GenericClient, id: i32) -> Result<Option<Evaluation>, DbError> {
    let none: Option<&str> = None;
    let rows = client.query(SELECT_EVALUATIONS, &[&id, &none, &none, &true, &1_i64])?;
    Ok(rows.first().map(from_row))
}

/// The newest evaluations of a jobset, the newest first; `unchanged`: also those that are the same as the one before.
///
/// # Errors
/// Of the database.
pub fn evaluations(
    client: &mut impl GenericClient,
    project: &str,
    jobset: &str,
    unchanged: bool,
    count_max: i64,
) -> Result<Vec<Evaluation>, DbError> {
    let id: Option<i32> = None;
    let rows = client.query(
        SELECT_EVALUATIONS,
        &[&id, &project, &jobset, &unchanged, &count_max],
    )?;
    Ok(rows.iter().map(from_row).collect())
}

fn from_row(row: &Row) -> Evaluation {
    Evaluation {
        id: row.get(0),
        project: row.get(1),
        jobset: row.get(2),
        at: row.get(3),
        fetching_secs: row.get(4),
        evaluating_secs: row.get(5),
        changed: row.get(6),
        flake: row.get(7),
        nix_expr_input: row.get(8),
        nix_expr_path: row.get(9),
        error: row.get::<_, Option<String>>(10).unwrap_or_default(),
        counts: Counts {
            all: row.get(11),
            new: row.get(12),
            succeeded: row.get(13),
            failed: row.get(14),
            queued: row.get(15),
        },
    }
}

/// The newest evaluation of a jobset that changed anything.
///
/// # Errors
/// Of the database.
pub fn newest_changed(
    client: &mut impl GenericClient,
    project: &str,
    jobset: &str,
) -> Result<Option<i32>, DbError> {
    let sql = include_str!("../../sql/results/find_evaluation.sql");
    let row = client.query_opt(sql, &[&project, &jobset])?;
    Ok(row.map(|row| row.get(0)))
}

/// The evaluation of the same jobset that changed anything before this one.
///
/// # Errors
/// Of the database.
pub fn previous(client: &mut impl GenericClient, id: i32) -> Result<Option<i32>, DbError> {
    let sql = include_str!("../../sql/results/find_previous.sql");
    Ok(client.query_opt(sql, &[&id])?.map(|row| row.get(0)))
}

/// The newest evaluation of a jobset, whatever came of it; 0 if there is none.
///
/// # Errors
/// Of the database.
pub fn newest(client: &mut impl GenericClient, jobset_id: i32) -> Result<i32, DbError> {
    let sql = include_str!("../../sql/results/find_newest.sql");
    Ok(client.query_one(sql, &[&jobset_id])?.get(0))
}

/// The jobs of an evaluation, by name and system.
///
/// # Errors
/// Of the database.
pub fn jobs(client: &mut impl GenericClient, evaluation: i32) -> Result<Vec<Job>, DbError> {
    let sql = include_str!("../../sql/results/select_jobs.sql");
    let rows = client.query(sql, &[&evaluation])?;
    let mut jobs: Vec<Job> = rows
        .iter()
        .map(|row| Job {
            build: row.get(0),
            job: row.get(1),
            system: row.get(2),
            status: row.get(3),
            is_new: row.get(4),
            nix_name: row.get(5),
        })
        .collect();
    jobs.sort();
    Ok(jobs)
}

/// # Errors
/// Of the database.
pub fn inputs(
    client: &mut impl GenericClient,
    evaluation: i32,
) -> Result<Vec<EvaluationInput>, DbError> {
    let sql = include_str!("../../sql/results/select_inputs.sql");
    let rows = client.query(sql, &[&evaluation])?;
    let input = |row: &Row| EvaluationInput {
        name: row.get(0),
        kind: row.get(1),
        uri: row.get(2),
        revision: row.get(3),
        value: row.get(4),
        dependency: row.get(5),
        path: row.get(6),
    };
    Ok(rows.iter().map(input).collect())
}
