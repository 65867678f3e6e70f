//! Earlier builds and evaluations as inputs of an evaluation. Whether their outputs are still in a store it does not know.

use postgres::Row;

use super::pool::Conn;
use super::DbError;

/// A build and its main output: `out`, else the first by name.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct InputBuild {
    pub id: i32,
    pub nix_name: Option<String>,
    pub release_name: Option<String>,
    /// Full path.
    pub drv_path: String,
    /// Name and full path; the path is not known of an output that was never built.
    pub output: Option<(String, Option<String>)>,
}

/// A job, and values that the build's own inputs must have had.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct WantedJob<'a> {
    pub project: &'a str,
    pub jobset: &'a str,
    pub job: &'a str,
    pub attributes: Vec<(String, String)>,
}

fn build(row: &Row) -> InputBuild {
    InputBuild {
        id: row.get(0),
        nix_name: row.get(1),
        release_name: row.get(2),
        drv_path: row.get(3),
        output: row
            .get::<_, Option<String>>(4)
            .map(|name| (name, row.get(5))),
    }
}

/// One build, however it stands.
///
/// # Errors
/// Of the database.
pub fn by_id(conn: &mut Conn, id: i32) -> Result<Option<InputBuild>, DbError> {
    let rows = conn.query(include_str!("../../sql/inputs/select_build.sql"), &[&id])?;
    Ok(rows.first().map(build))
}

/// The newest success of a job.
///
/// # Errors
/// Of the database.
pub fn newest(conn: &mut Conn, wanted: &WantedJob<'_>) -> Result<Option<InputBuild>, DbError> {
    let (names, values): (Vec<&str>, Vec<&str>) = wanted
        .attributes
        .iter()
        .map(|(name, value)| (name.as_str(), value.as_str()))
        .unzip();
    let rows = conn.query(
        include_str!("../../sql/inputs/select_newest_build.sql"),
        &[
            &wanted.project,
            &wanted.jobset,
            &wanted.job,
            &names,
            &values,
        ],
    )?;
    Ok(rows.first().map(build))
}

/// The newest success of a job on each system on which the job is current.
///
/// # Errors
/// Of the database.
pub fn newest_by_system(
    conn: &mut Conn,
    wanted: &WantedJob<'_>,
) -> Result<Vec<InputBuild>, DbError> {
    let rows = conn.query(
        include_str!("../../sql/inputs/select_newest_by_system.sql"),
        &[&wanted.project, &wanted.jobset, &wanted.job],
    )?;
    Ok(rows.iter().map(build).collect())
}

/// Whether there is such an evaluation.
///
/// # Errors
/// Of the database.
pub fn has_evaluation(conn: &mut Conn, id: i32) -> Result<bool, DbError> {
    let rows = conn.query(include_str!("../../sql/inputs/has_evaluation.sql"), &[&id])?;
    Ok(!rows.is_empty())
}

/// The newest evaluation of a jobset all of whose builds are finished; with a job, in which that succeeded.
///
/// # Errors
/// Of the database.
pub fn finished_evaluation(
    conn: &mut Conn,
    project: &str,
    jobset: &str,
    job: Option<&str>,
) -> Result<Option<i32>, DbError> {
    let rows = conn.query(
        include_str!("../../sql/inputs/select_finished_evaluation.sql"),
        &[&project, &jobset, &job],
    )?;
    Ok(rows.first().map(|row| row.get(0)))
}

/// Jobs that succeeded in an evaluation, and the path of their output `out`.
///
/// # Errors
/// Of the database.
pub fn outputs_of_evaluation(
    conn: &mut Conn,
    evaluation: i32,
) -> Result<Vec<(String, String)>, DbError> {
    let rows = conn.query(
        include_str!("../../sql/inputs/select_outputs_of_evaluation.sql"),
        &[&evaluation],
    )?;
    Ok(rows.iter().map(|row| (row.get(0), row.get(1))).collect())
}
