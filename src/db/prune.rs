//! What of the database nobody needs any more: events of the ledger that ended long ago, and steps of old builds.
//!
//! Small transactions, in the order of the ids, and none that waits long for a row: a queue runner or a notifier at work
//! does not notice. Does not know how old is old.

use postgres::Client;

use super::DbError;
use crate::model::UnixSecs;

/// Builds whose steps go in one transaction.
const BUILDS_MAX: i64 = 200;
/// Tries of a transaction that met somebody else's lock.
const TRIES_MAX: u32 = 5;

/// What of the ledger is old.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct OldEvents {
    pub events: u64,
    /// What became of them for each target.
    pub deliveries: u64,
}

/// Counts the events whose deliveries all ended before `ended_before`, or, if one was given up, before `given_up_before`.
///
/// # Errors
/// Of the database, as with all of these.
pub fn count_events(
    client: &mut Client,
    ended_before: UnixSecs,
    given_up_before: UnixSecs,
) -> Result<OldEvents, DbError> {
    let sql = include_str!("../../sql/prune/count_old_events.sql");
    let row = client.query_one(sql, &[&ended_before, &given_up_before])?;
    Ok(OldEvents {
        events: number(row.get(0)),
        deliveries: number(row.get(1)),
    })
}

/// Deletes them; `done` hears of each batch how many events it was.
pub fn delete_events(
    client: &mut Client,
    ended_before: UnixSecs,
    given_up_before: UnixSecs,
    done: &mut dyn FnMut(u64),
) -> Result<u64, DbError> {
    let sql = include_str!("../../sql/notify/delete_old_events.sql");
    let mut deleted = 0;
    loop {
        let batch = batch(client, |tx| {
            tx.execute(sql, &[&ended_before, &given_up_before])
        })?;
        if batch == 0 {
            return Ok(deleted);
        }
        deleted += batch;
        done(batch);
    }
}

/// The steps of old builds, and how many builds have some.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct OldSteps {
    pub builds: u64,
    pub steps: u64,
}

/// Counts the steps that [`delete_steps`] would delete.
pub fn count_steps(client: &mut Client, ended_before: UnixSecs) -> Result<OldSteps, DbError> {
    let sql = include_str!("../../sql/prune/count_old_steps.sql");
    through_builds(client, ended_before, |client, builds| {
        Ok(number(client.query_one(sql, &[&builds])?.get(0)))
    })
}

/// Deletes the steps of builds that ended before `ended_before`; `done` hears of each batch how many steps it was.
pub fn delete_steps(
    client: &mut Client,
    ended_before: UnixSecs,
    done: &mut dyn FnMut(u64),
) -> Result<OldSteps, DbError> {
    let sql = include_str!("../../sql/prune/delete_old_steps.sql");
    through_builds(client, ended_before, |client, builds| {
        let steps = batch(client, |tx| tx.execute(sql, &[&builds]))?;
        done(steps);
        Ok(steps)
    })
}

fn through_builds(
    client: &mut Client,
    ended_before: UnixSecs,
    mut work: impl FnMut(&mut Client, &[i32]) -> Result<u64, DbError>,
) -> Result<OldSteps, DbError> {
    let sql = include_str!("../../sql/prune/select_old_builds.sql");
    // The column has 32 bits.
    let before = i32::try_from(ended_before).unwrap_or(if ended_before < 0 { 0 } else { i32::MAX });
    let mut old = OldSteps::default();
    let mut last = 0_i32;
    loop {
        let rows = client.query(sql, &[&before, &last, &BUILDS_MAX])?;
        let builds: Vec<i32> = rows.iter().map(|row| row.get(0)).collect();
        let Some(&highest) = builds.last() else {
            return Ok(old);
        };
        last = highest;
        let steps = work(client, &builds)?;
        old.steps += steps;
        old.builds += if steps > 0 { builds.len() as u64 } else { 0 };
    }
}

/// One transaction, again if somebody else was faster.
fn batch(
    client: &mut Client,
    work: impl Fn(&mut postgres::Transaction<'_>) -> Result<u64, postgres::Error>,
) -> Result<u64, DbError> {
    let mut tries = 0;
    loop {
        tries += 1;
        let mut once = || -> Result<u64, DbError> {
            let mut tx = client.transaction()?;
            tx.batch_execute(include_str!("../../sql/admin/limit_lock_wait.sql"))?;
            let rows = work(&mut tx)?;
            tx.commit()?;
            Ok(rows)
        };
        match once() {
            Err(error) if error.is_retryable() && tries < TRIES_MAX => {}
            result => return result,
        }
    }
}

fn number(count: i64) -> u64 {
    u64::try_from(count).unwrap_or(0)
}
