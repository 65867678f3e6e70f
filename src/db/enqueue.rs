//! Queueing builds by hand: the rows and notifications that an evaluation would make.

use std::collections::{BTreeMap, HashMap};

use postgres::Client;

use super::DbError;
use crate::sys::clock::unix_now;

/// A build to be queued.
#[derive(Clone, PartialEq, Debug)]
pub struct NewBuild {
    pub job: String,
    pub nix_name: String,
    pub drv: String,
    pub system: String,
    pub outputs: BTreeMap<String, Option<String>>,
    pub description: Option<String>,
    pub homepage: Option<String>,
    /// Seconds; 0 is no limit.
    pub max_silent: i32,
    pub timeout: i32,
    pub priority: i32,
    pub is_channel: bool,
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
    builds: &[NewBuild],
) -> Result<Queued, DbError> {
    let now = i32::try_from(unix_now()).unwrap_or(i32::MAX);
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
    let insert_build = tx.prepare(include_str!("../../sql/admin/insert_build.sql"))?;
    let insert_output = tx.prepare(include_str!("../../sql/admin/insert_build_output.sql"))?;
    let insert_member = tx.prepare(include_str!("../../sql/admin/insert_evaluation_member.sql"))?;
    let notify = tx.prepare("select pg_notify($1, $2)")?;
    let mut ids = Vec::with_capacity(builds.len());
    for build in builds {
        let id: i32 = tx
            .query_one(
                &insert_build,
                &[
                    &now,
                    &jobset_id,
                    &build.job,
                    &build.nix_name,
                    &build.description,
                    &build.drv,
                    &build.system,
                    &build.homepage,
                    &build.max_silent,
                    &build.timeout,
                    &i32::from(build.is_channel),
                    &build.priority,
                ],
            )?
            .get(0);
        for (name, path) in &build.outputs {
            tx.execute(&insert_output, &[&id, name, path])?;
        }
        tx.execute(&insert_member, &[&evaluation, &id])?;
        tx.execute(&notify, &[&"build_queued", &id.to_string()])?;
        ids.push(id);
    }
    insert_constituents(&mut tx, builds, &ids)?;
    if let Some(lowest) = ids.iter().min() {
        tx.execute(&notify, &[&"builds_added", &lowest.to_string()])?;
    }
    tx.commit()?;
    Ok(Queued {
        evaluation,
        builds: ids,
    })
}

fn insert_constituents(
    tx: &mut postgres::Transaction<'_>,
    builds: &[NewBuild],
    ids: &[i32],
) -> Result<(), DbError> {
    let by_job: HashMap<&str, i32> = builds
        .iter()
        .zip(ids)
        .map(|(build, id)| (build.job.as_str(), *id))
        .collect();
    let by_drv: HashMap<&str, i32> = builds
        .iter()
        .zip(ids)
        .map(|(build, id)| (build.drv.as_str(), *id))
        .collect();
    for (build, id) in builds.iter().zip(ids) {
        for constituent in &build.constituents {
            let member = match constituent {
                Constituent::Job(job) => by_job.get(job.as_str()),
                Constituent::Drv(drv) => by_drv.get(drv.as_str()),
            };
            match member {
                Some(member) => {
                    tx.execute(
                        include_str!("../../sql/admin/insert_constituent.sql"),
                        &[id, member],
                    )?;
                }
                None => log::warn!(
                    "aggregate {}: its member {constituent:?} is not among the jobs",
                    build.job
                ),
            }
        }
    }
    Ok(())
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
