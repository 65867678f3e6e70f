//! What an operator does to builds by hand, in the rows and with the triggers that Hydra's web server uses, so that
//! every queue runner takes notice.
//!
//! Each change is one transaction: the builds are locked in the order of their ids, those in the wrong state are told
//! of and left alone, and if one does not exist nothing is changed.

use postgres::{Client, Transaction};

use super::DbError;
use crate::model::BuildStatus;

/// A build that an operator named, as it was before the change.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Named {
    pub id: i32,
    /// `project:jobset:job`.
    pub name: String,
    /// How it ended; `None` while it is queued.
    pub ended: Option<Option<BuildStatus>>,
    pub drv: String,
    pub global_priority: i32,
}

/// What became of a change.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Changed {
    /// Nothing was changed: these builds do not exist.
    Unknown(Vec<i32>),
    Done(Done),
}

#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Done {
    /// Changed, by id.
    pub changed: Vec<Named>,
    /// In the wrong state, by id.
    pub refused: Vec<Named>,
    /// Recorded failures that were forgotten.
    pub failures_cleared: u64,
    /// The builds' priority now.
    pub priority: Option<i32>,
}

/// Whether a locked build is to be changed.
type Wanted = fn(&Named) -> bool;

/// Begins a change: the transaction, with the builds in it locked and parted into those wanted and the others.
fn begin<'a>(
    client: &'a mut Client,
    ids: &[i32],
    wanted: Wanted,
) -> Result<(Transaction<'a>, Result<Done, Vec<i32>>), DbError> {
    let mut tx = client.transaction()?;
    tx.batch_execute(include_str!("../../sql/admin/limit_lock_wait.sql"))?;
    let rows = tx.query(include_str!("../../sql/admin/lock_builds.sql"), &[&ids])?;
    let found: Vec<Named> = rows
        .iter()
        .map(|row| Named {
            id: row.get(0),
            name: row.get(1),
            ended: (row.get::<_, i32>(2) != 0).then(|| {
                row.get::<_, Option<i32>>(3)
                    .and_then(BuildStatus::from_code)
            }),
            drv: row.get(4),
            global_priority: row.get(5),
        })
        .collect();
    let unknown: Vec<i32> = ids
        .iter()
        .copied()
        .filter(|id| !found.iter().any(|build| build.id == *id))
        .collect();
    if !unknown.is_empty() {
        return Ok((tx, Err(unknown)));
    }
    let (changed, refused) = found.into_iter().partition(wanted);
    let done = Done {
        changed,
        refused,
        ..Done::default()
    };
    Ok((tx, Ok(done)))
}

fn ids_of(builds: &[Named]) -> Vec<i32> {
    builds.iter().map(|build| build.id).collect()
}

/// The derivations of these builds, for what has to be done before they are restarted.
///
/// # Errors
/// Of the database.
pub fn look_up(client: &mut Client, ids: &[i32]) -> Result<Changed, DbError> {
    let (tx, found) = begin(client, ids, |_| true)?;
    tx.rollback()?;
    Ok(found.map_or_else(Changed::Unknown, Changed::Done))
}

/// Queues finished builds again, and forgets the failures recorded for their outputs and those of their steps.
///
/// # Errors
/// Of the database; nothing is changed then.
pub fn restart(client: &mut Client, ids: &[i32]) -> Result<Changed, DbError> {
    let (mut tx, found) = begin(client, ids, |build| build.ended.is_some())?;
    let mut done = match found {
        Ok(done) => done,
        Err(unknown) => return Ok(Changed::Unknown(unknown)),
    };
    let ids = ids_of(&done.changed);
    // The failures first: whoever hears of the restart must not find them any more.
    done.failures_cleared = tx.execute(
        include_str!("../../sql/admin/forget_failures_of_builds.sql"),
        &[&ids],
    )?;
    tx.execute(
        include_str!("../../sql/admin/reset_evaluations.sql"),
        &[&ids],
    )?;
    tx.execute(include_str!("../../sql/admin/restart_builds.sql"), &[&ids])?;
    tx.commit()?;
    Ok(Changed::Done(done))
}

/// Ends queued builds as cancelled.
///
/// # Errors
/// Of the database; nothing is changed then.
pub fn cancel(client: &mut Client, ids: &[i32], now: i32) -> Result<Changed, DbError> {
    let (mut tx, found) = begin(client, ids, |build| build.ended.is_none())?;
    let done = match found {
        Ok(done) => done,
        Err(unknown) => return Ok(Changed::Unknown(unknown)),
    };
    let ids = ids_of(&done.changed);
    tx.execute(
        include_str!("../../sql/admin/cancel_builds.sql"),
        &[&ids, &now],
    )?;
    tx.commit()?;
    Ok(Changed::Done(done))
}

/// What becomes of the builds' place in hydrad's emergency lane.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Lane {
    AsIs,
    /// They go before everything else from now on, until that time (Unix) or until they have ended.
    Emergency {
        now: i64,
        until: Option<i64>,
    },
    Ordinary,
}

/// Gives queued builds this global priority, or one more than any queued build has.
///
/// # Errors
/// Of the database; nothing is changed then.
pub fn bump(
    client: &mut Client,
    ids: &[i32],
    priority: Option<i32>,
    lane: Lane,
) -> Result<Changed, DbError> {
    let (mut tx, found) = begin(client, ids, |build| build.ended.is_none())?;
    let mut done = match found {
        Ok(done) => done,
        Err(unknown) => return Ok(Changed::Unknown(unknown)),
    };
    let priority = match priority {
        Some(priority) => priority,
        None => {
            let top: i32 = tx
                .query_one(include_str!("../../sql/admin/select_top_priority.sql"), &[])?
                .get(0);
            top.saturating_add(1).min(PRIORITY_MAX)
        }
    };
    let ids = ids_of(&done.changed);
    tx.execute(
        include_str!("../../sql/admin/bump_builds.sql"),
        &[&ids, &priority],
    )?;
    done.priority = Some(priority);
    if lane != Lane::AsIs {
        tx.execute(
            include_str!("../../sql/admin/delete_emergencies.sql"),
            &[&ids],
        )?;
        if let Lane::Emergency { now, until } = lane {
            tx.execute(
                include_str!("../../sql/admin/insert_emergencies.sql"),
                &[&ids, &until, &now],
            )?;
        }
        // Also where no priority has changed, of which the trigger would tell.
        tx.execute("select pg_notify('builds_bumped', '')", &[])?;
    }
    tx.commit()?;
    Ok(Changed::Done(done))
}

/// The highest global priority a build may be given by hand.
pub const PRIORITY_MAX: i32 = i32::MAX - 1;

/// A recorded failure of an output.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct FailedPath {
    pub path: String,
    /// When the newest step that failed with it ended; `None`: no such step is known.
    pub failed_at: Option<i64>,
}

/// Recorded failures: of these paths, or all.
///
/// # Errors
/// Of the database.
pub fn failed_paths(
    client: &mut Client,
    paths: Option<&[String]>,
) -> Result<Vec<FailedPath>, DbError> {
    let rows = client.query(
        include_str!("../../sql/admin/select_failed_paths.sql"),
        &[&paths],
    )?;
    Ok(rows
        .iter()
        .map(|row| FailedPath {
            path: row.get(0),
            failed_at: row.get(1),
        })
        .collect())
}

/// The outputs of a derivation, as far as a build or step tells.
///
/// # Errors
/// Of the database.
pub fn outputs_of(client: &mut Client, drv: &str) -> Result<Vec<String>, DbError> {
    let rows = client.query(
        include_str!("../../sql/admin/select_outputs_of_drv.sql"),
        &[&drv],
    )?;
    Ok(rows.iter().map(|row| row.get(0)).collect())
}

/// Forgets recorded failures. Returns those that were there.
///
/// # Errors
/// Of the database.
pub fn forget_failures(client: &mut Client, paths: &[String]) -> Result<Vec<String>, DbError> {
    let rows = client.query(
        include_str!("../../sql/admin/delete_failed_paths.sql"),
        &[&paths],
    )?;
    Ok(rows.iter().map(|row| row.get(0)).collect())
}
