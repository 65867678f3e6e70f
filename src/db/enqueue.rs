//! Queueing builds by hand: the rows and notifications that an evaluation would make.

use std::collections::HashMap;

use postgres::Client;

use super::evaluations::{self, NewBuild, Notice};
use super::DbError;

/// A build to be queued, with its members if it is an aggregate.
#[derive(Clone, PartialEq, Debug)]
pub struct Queueing {
    pub build: NewBuild,
    pub constituents: Vec<Constituent>,
}

/// A member of an aggregate, by the name of its job or by its derivation.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Constituent {
    Job(String),
    Drv(String),
}

/// What was queued: the builds' ids in the order given.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Queued {
    pub evaluation: i32,
    pub builds: Vec<i32>,
}

/// Queues the builds in one transaction: project and jobset are made if needed, then an evaluation with them.
/// Announces `build_queued` for each and `builds_added` with the lowest id.
///
/// # Errors
/// Of the database; nothing is queued then.
pub fn insert(
    client: &mut Client,
    project: &str,
    jobset: &str,
    builds: &[Queueing],
) -> Result<Queued, DbError> {
    let now = evaluations::now();
    let mut tx = client.transaction()?;
    tx.execute(include_str!("../../sql/admin/ensure_user.sql"), &[])?;
    tx.execute(
        include_str!("../../sql/admin/ensure_project.sql"),
        &[&project],
    )?;
    tx.execute(
        include_str!("../../sql/admin/ensure_jobset.sql"),
        &[&project, &jobset],
    )?;
    let jobset_id: i32 = tx
        .query_one(
            include_str!("../../sql/admin/select_jobset_id.sql"),
            &[&project, &jobset],
        )?
        .get(0);
    let count = i32::try_from(builds.len()).unwrap_or(i32::MAX);
    let evaluation: i32 = tx
        .query_one(
            include_str!("../../sql/admin/insert_evaluation.sql"),
            &[&jobset_id, &now, &count],
        )?
        .get(0);
    let rows: Vec<NewBuild> = builds.iter().map(|queued| queued.build.clone()).collect();
    let ids = evaluations::insert_builds(&mut tx, jobset_id, now, &rows, |_| {})?;
    let members = ids.iter().map(|id| (*id, true)).collect();
    evaluations::insert_members(&mut tx, evaluation, &members)?;
    evaluations::insert_constituents(&mut tx, &constituents(builds, &ids))?;
    let notices: Vec<Notice> = ids
        .iter()
        .map(|id| ("build_queued", id.to_string()))
        .chain(
            ids.first()
                .map(|lowest| ("builds_added", lowest.to_string())),
        )
        .collect();
    evaluations::notify(&mut tx, &notices)?;
    tx.commit()?;
    Ok(Queued {
        evaluation,
        builds: ids,
    })
}

/// The members of aggregates: aggregate and constituent.
fn constituents(builds: &[Queueing], ids: &[i32]) -> Vec<(i32, i32)> {
    let with_id = || builds.iter().zip(ids);
    let by_job: HashMap<&str, i32> = with_id()
        .map(|(queued, id)| (queued.build.job.as_str(), *id))
        .collect();
    let by_drv: HashMap<&str, i32> = with_id()
        .map(|(queued, id)| (queued.build.drv_path.as_str(), *id))
        .collect();
    let mut pairs = Vec::new();
    for (queued, id) in with_id() {
        for constituent in &queued.constituents {
            let member = match constituent {
                Constituent::Job(job) => by_job.get(job.as_str()),
                Constituent::Drv(drv) => by_drv.get(drv.as_str()),
            };
            match member {
                Some(member) => pairs.push((*id, *member)),
                None => log::warn!(
                    "aggregate {}: its member {constituent:?} is not among the jobs",
                    queued.build.job
                ),
            }
        }
    }
    pairs
}

/// How a build stands.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct State {
    pub id: i32,
    pub job: String,
    /// `None` while it is unfinished.
    pub status: Option<i32>,
    pub start: Option<i64>,
    pub stop: Option<i64>,
    pub cached: bool,
}

/// The builds with these ids that exist, by id.
///
/// # Errors
/// Of the database.
pub fn states(client: &mut Client, ids: &[i32]) -> Result<Vec<State>, DbError> {
    let rows = client.query(
        include_str!("../../sql/admin/select_build_states.sql"),
        &[&ids],
    )?;
    Ok(rows
        .iter()
        .map(|row| State {
            id: row.get(0),
            job: row.get(1),
            status: row.get(2),
            start: row.get::<_, Option<i32>>(3).map(i64::from),
            stop: row.get::<_, Option<i32>>(4).map(i64::from),
            cached: row.get(5),
        })
        .collect())
}
