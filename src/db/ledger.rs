//! The ledger of notifications: what was announced, what is to be delivered to which target, and what became of it.
//!
//! Knows the tables `hydrad.notifier`, `hydrad.events` and `hydrad.deliveries`, and Hydra's `TaskRetries` and
//! `Builds.notificationPendingSince`, which keep their meaning so that Hydra's own notifier can take over at any time.
//! Does not know what a payload means or when something is tried again (`notify/plan.rs`).
//!
//! Every transaction that writes first makes sure that the notifier's advisory lock is still held by our session, and that nobody who
//! gets the lock meanwhile goes on before it has ended.

use super::guard::{Commit, Guarded};
use super::locks::LockProof;
use super::pool::{Conn, Pool, Tx};
use super::{DbError, Notification};
use crate::config::settings::Service;
use crate::model::UnixSecs;

/// Events planned in one transaction.
pub const PLANNED_MAX: i64 = 1_000;
/// What was given up is kept so many times as long as what was delivered.
pub const GIVEN_UP_FACTOR: i64 = 10;
/// Rows of Hydra's taken over in one transaction.
const ADOPTED_MAX: i64 = 1_000;

/// An event of the ledger.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct EventRow {
    /// The end of a build that defines jobsets; only known of new events.
    pub declares: bool,
    pub id: i64,
    pub channel: String,
    pub payload: String,
    pub builds: Vec<i32>,
    pub at: UnixSecs,
}

/// A delivery that waits.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct WaitingRow {
    pub event: EventRow,
    pub target: String,
    pub attempts: u32,
    pub due_at: UnixSecs,
}

/// What became of a delivery.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum State {
    Waiting,
    Delivered,
    Superseded,
    GivenUp,
}

impl State {
    fn word(self) -> &'static str {
        match self {
            State::Waiting => "waiting",
            State::Delivered => "delivered",
            State::Superseded => "superseded",
            State::GivenUp => "given_up",
        }
    }
}

/// An outcome to be recorded.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Outcome {
    pub event: i64,
    pub target: String,
    /// The plugin's class in Hydra, for `TaskRetries`; `None` if Hydra has no such plugin.
    pub class: Option<&'static str>,
    /// It may be the last that keeps builds marked as not yet told.
    pub ends_builds: bool,
    pub state: State,
    pub attempts: u32,
    /// Of one that waits.
    pub due_at: UnixSecs,
    pub error: Option<String>,
}

/// How full the ledger is.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Backlog {
    pub waiting: u64,
    pub held: u64,
    pub given_up: u64,
    /// When the oldest of those that wait was announced.
    pub oldest: Option<UnixSecs>,
}

/// The ledger, for whoever holds the notifier's lock.
pub struct Ledger {
    guarded: Guarded,
}

impl Ledger {
    pub fn new(pool: Pool, proof: LockProof) -> Ledger {
        // Before the lock is asked about: who has lost it cannot write after the next one has begun.
        let fence = include_str!("../../sql/notify/fence.sql");
        Ledger {
            guarded: Guarded::new(pool, Service::Notify, Some(proof)).fenced(fence),
        }
    }

    /// Once this returns it is on PostgreSQL's disk.
    fn write<T>(&self, work: impl FnMut(&mut Tx<'_>) -> Result<T, DbError>) -> Result<T, DbError> {
        self.guarded.commit(Commit::OnDisk, work)
    }

    /// Says that a notifier is at work and what it wants to hear of. Whatever the one before us was writing has ended then.
    ///
    /// # Errors
    /// Of the database, as with all of these.
    pub fn sign_of_life(&self, now: UnixSecs, channels: &[&str]) -> Result<(), DbError> {
        self.write(|tx| {
            let sql = include_str!("../../sql/notify/sign_of_life.sql");
            tx.execute(sql, &[&now, &channels]).map(drop)
        })
    }

    /// What was heard becomes events, unless whoever announced it has seen to that.
    pub fn hear(&self, now: UnixSecs, heard: &[Notification]) -> Result<(), DbError> {
        let channels: Vec<&str> = heard.iter().map(|n| n.channel.as_str()).collect();
        let payloads: Vec<&str> = heard.iter().map(|n| n.payload.as_str()).collect();
        let backends: Vec<i32> = heard.iter().map(|n| n.sender_pid).collect();
        self.write(|tx| {
            let sql = include_str!("../../sql/notify/hear_events.sql");
            tx.execute(sql, &[&channels, &payloads, &backends, &now])
                .map(drop)
        })
    }

    /// Events for builds whose end is marked as not yet told; those marked before `held_before` are held.
    pub fn recover_pending(&self, now: UnixSecs, held_before: UnixSecs) -> Result<u64, DbError> {
        self.write(|tx| {
            tx.execute(include_str!("../../sql/notify/sweep_pending.sql"), &[])?;
            let sql = include_str!("../../sql/notify/recover_pending.sql");
            tx.execute(sql, &[&now, &held_before])
        })
    }

    /// Builds that were told of, and whose mark somebody's lock kept in place.
    pub fn sweep(&self) -> Result<u64, DbError> {
        self.write(|tx| tx.execute(include_str!("../../sql/notify/sweep_pending.sql"), &[]))
    }

    /// What a new active notifier does first: holds what is old, and settles what was decided elsewhere meanwhile.
    pub fn take_over(&self, now: UnixSecs, held_before: UnixSecs) -> Result<(), DbError> {
        self.write(|tx| {
            let sql = include_str!("../../sql/notify/hold_old.sql");
            tx.execute(sql, &[&held_before])?;
            let sql = include_str!("../../sql/notify/settle_vanished_retries.sql");
            tx.execute(sql, &[&now]).map(drop)
        })
    }

    /// Takes over what Hydra's notifier left to be tried again, for the plugins in `classes` (class, target).
    pub fn adopt_retries(
        &self,
        held_before: UnixSecs,
        classes: &[(&str, String)],
        is_event: impl Fn(&str, &str) -> bool,
    ) -> Result<u64, DbError> {
        let names: Vec<&str> = classes.iter().map(|(class, _)| *class).collect();
        self.write(|tx| {
            let sql = include_str!("../../sql/notify/select_foreign_retries.sql");
            let mut adopted = 0;
            for row in tx.query(sql, &[&ADOPTED_MAX, &names])? {
                let (id, attempts, retry_at): (i32, i32, i32) =
                    (row.get(0), row.get(4), row.get(5));
                let (channel, class, payload): (String, String, String) =
                    (row.get(1), row.get(2), row.get(3));
                let target = classes.iter().find(|(name, _)| *name == class);
                let (Some((_, target)), true) = (target, is_event(&channel, &payload)) else {
                    continue;
                };
                let due = i64::from(retry_at);
                let sql = include_str!("../../sql/notify/adopt_retry.sql");
                tx.execute(
                    sql,
                    &[
                        &channel,
                        &payload,
                        &due,
                        target,
                        &attempts,
                        &due,
                        &id,
                        &held_before,
                    ],
                )?;
                adopted += 1;
            }
            Ok(adopted)
        })
    }

    /// Plans deliveries for new events; `targets_of` says who wants one. Returns how many events were looked at and the
    /// deliveries.
    pub fn plan(
        &self,
        now: UnixSecs,
        targets_of: impl Fn(&EventRow) -> Vec<String>,
    ) -> Result<(usize, Vec<WaitingRow>), DbError> {
        self.guarded.commit(Commit::Soon, |tx| {
            let sql = include_str!("../../sql/notify/select_new_events.sql");
            let rows = tx.query(sql, &[&PLANNED_MAX])?;
            let events: Vec<EventRow> = rows.iter().map(event).collect();
            let mut waiting = Vec::new();
            let (mut wanted, mut unwanted, mut told) = (Vec::new(), Vec::new(), Vec::new());
            for event in &events {
                let targets = targets_of(event);
                match (targets.is_empty(), event.channel.as_str()) {
                    // Kept, so that its builds count as told.
                    (true, "build_finished") => {
                        wanted.push(event.id);
                        told.push(event.id);
                    }
                    (true, _) => unwanted.push(event.id),
                    (false, _) => wanted.push(event.id),
                }
                waiting.extend(targets.into_iter().map(|target| WaitingRow {
                    event: event.clone(),
                    target,
                    attempts: 0,
                    due_at: now,
                }));
            }
            let ids: Vec<i64> = waiting.iter().map(|row| row.event.id).collect();
            let targets: Vec<&str> = waiting.iter().map(|row| row.target.as_str()).collect();
            if !waiting.is_empty() {
                let sql = include_str!("../../sql/notify/plan_deliveries.sql");
                tx.execute(sql, &[&ids, &targets, &now])?;
            }
            if !wanted.is_empty() {
                let sql = include_str!("../../sql/notify/mark_planned.sql");
                tx.execute(sql, &[&wanted])?;
            }
            if !unwanted.is_empty() {
                let sql = include_str!("../../sql/notify/delete_unwanted.sql");
                tx.execute(sql, &[&unwanted])?;
            }
            if !told.is_empty() {
                let sql = include_str!("../../sql/notify/clear_pending.sql");
                tx.execute(sql, &[&told])?;
            }
            Ok((events.len(), waiting))
        })
    }

    /// What waits for a target, the oldest first.
    pub fn waiting(&self, target: &str, rows_max: usize) -> Result<Vec<WaitingRow>, DbError> {
        let rows_max = i64::try_from(rows_max).unwrap_or(i64::MAX);
        let sql = include_str!("../../sql/notify/select_waiting.sql");
        let read = |conn: &mut Conn| conn.query(sql, &[&target, &rows_max]);
        let rows = self.guarded.read(read)?;
        let waiting = |row: &postgres::Row| WaitingRow {
            event: EventRow {
                declares: false,
                id: row.get(0),
                channel: row.get(2),
                payload: row.get(3),
                builds: row.get(4),
                at: row.get(5),
            },
            target: row.get(1),
            attempts: u32::try_from(row.get::<_, i32>(6)).unwrap_or(0),
            due_at: row.get(7),
        };
        Ok(rows.iter().map(waiting).collect())
    }

    /// Records outcomes, and in the same transaction what Hydra's own notifier would have to know of them.
    pub fn record(&self, now: UnixSecs, outcomes: &[Outcome]) -> Result<(), DbError> {
        self.guarded
            .commit(Commit::Soon, |tx| record(tx, now, outcomes))
    }

    /// What waits for targets that are not among these is given up.
    pub fn give_up_unconfigured(&self, now: UnixSecs, targets: &[&str]) -> Result<u64, DbError> {
        let sql = include_str!("../../sql/notify/give_up_unconfigured.sql");
        self.write(|tx| tx.execute(sql, &[&targets, &now]))
    }

    /// Deletes what ended before `ended_before`; what was given up stays until `given_up_before`.
    pub fn delete_old(
        &self,
        ended_before: UnixSecs,
        given_up_before: UnixSecs,
    ) -> Result<u64, DbError> {
        self.write(|tx| {
            let sql = include_str!("../../sql/notify/delete_old_events.sql");
            tx.execute(sql, &[&ended_before, &given_up_before])
        })
    }
}

fn record(tx: &mut Tx<'_>, now: UnixSecs, outcomes: &[Outcome]) -> Result<(), DbError> {
    let column = |value: &dyn Fn(&Outcome) -> i64| outcomes.iter().map(value).collect::<Vec<i64>>();
    let events = column(&|outcome| outcome.event);
    let due = column(&|outcome| outcome.due_at);
    let targets: Vec<&str> = outcomes.iter().map(|o| o.target.as_str()).collect();
    let states: Vec<&str> = outcomes.iter().map(|o| o.state.word()).collect();
    let attempts: Vec<i32> = outcomes
        .iter()
        .map(|o| i32::try_from(o.attempts).unwrap_or(i32::MAX))
        .collect();
    let errors: Vec<Option<&str>> = outcomes.iter().map(|o| o.error.as_deref()).collect();
    let done: Vec<Option<i64>> = outcomes
        .iter()
        .map(|o| (o.state != State::Waiting).then_some(now))
        .collect();
    let rows = tx.query(
        include_str!("../../sql/notify/record_outcomes.sql"),
        &[&events, &targets, &states, &attempts, &due, &errors, &done],
    )?;
    let mut obsolete: Vec<i32> = Vec::new();
    for row in &rows {
        let (event, target, state): (i64, String, String) = (row.get(0), row.get(1), row.get(2));
        let (attempts, due): (i32, i64) = (row.get(3), row.get(4));
        let due = i32::try_from(due).unwrap_or(i32::MAX);
        let retry_row: Option<i32> = row.get(5);
        let class = outcomes
            .iter()
            .find(|o| o.event == event && o.target == target)
            .and_then(|o| o.class);
        match (state.as_str(), retry_row, class) {
            ("waiting", Some(id), _) => {
                let sql = include_str!("../../sql/notify/update_retry.sql");
                tx.execute(sql, &[&id, &attempts, &due])?;
            }
            ("waiting", None, Some(class)) => {
                let sql = include_str!("../../sql/notify/insert_retry.sql");
                tx.execute(sql, &[&event, &target, &class, &attempts, &due])?;
            }
            ("waiting", None, None) | (_, None, _) => {}
            (_, Some(id), _) => obsolete.push(id),
        }
    }
    if !obsolete.is_empty() {
        let sql = include_str!("../../sql/notify/delete_retries.sql");
        tx.execute(sql, &[&obsolete])?;
    }
    let ends = outcomes.iter().filter(|outcome| outcome.ends_builds);
    let ends: Vec<i64> = ends.map(|outcome| outcome.event).collect();
    if !ends.is_empty() {
        let sql = include_str!("../../sql/notify/clear_pending.sql");
        tx.execute(sql, &[&ends])?;
    }
    Ok(())
}

fn event(row: &postgres::Row) -> EventRow {
    EventRow {
        declares: row.get(5),
        id: row.get(0),
        channel: row.get(1),
        payload: row.get(2),
        builds: row.get(3),
        at: row.get(4),
    }
}

/// How full the ledger is.
///
/// # Errors
/// Of the database.
pub fn backlog(conn: &mut Conn) -> Result<Backlog, DbError> {
    let rows = conn.query(include_str!("../../sql/notify/count_ledger.sql"), &[])?;
    let row = &rows[0];
    let count = |at: usize| u64::try_from(row.get::<_, i64>(at)).unwrap_or(0);
    Ok(Backlog {
        waiting: count(0),
        held: count(1),
        given_up: count(2),
        oldest: row.get(3),
    })
}

/// A row of the ledger for people: an event, or one delivery of it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Entry {
    pub event: i64,
    pub channel: String,
    pub payload: String,
    pub at: UnixSecs,
    /// `None`: nothing is planned yet.
    pub target: Option<String>,
    pub state: String,
    pub attempts: i32,
    pub due_at: Option<UnixSecs>,
    pub last_error: Option<String>,
}

/// Which rows are meant.
#[derive(Clone, Debug)]
pub struct Which<'a> {
    pub states: &'a [&'a str],
    pub build: Option<i32>,
    /// A target, or a plugin with all its targets.
    pub plugin: Option<&'a str>,
    pub since: UnixSecs,
    pub rows_max: i64,
}

/// Rows of the ledger, the oldest first.
///
/// # Errors
/// Of the database, as with the next ones.
pub fn entries(client: &mut postgres::Client, which: &Which<'_>) -> Result<Vec<Entry>, DbError> {
    let rows = client.query(
        include_str!("../../sql/notify/select_ledger.sql"),
        &[
            &which.states,
            &which.build,
            &which.plugin,
            &which.since,
            &which.rows_max,
        ],
    )?;
    let entry = |row: &postgres::Row| Entry {
        event: row.get(0),
        channel: row.get(1),
        payload: row.get(2),
        at: row.get(3),
        target: row.get(4),
        state: row.get(5),
        attempts: row.get(6),
        due_at: row.get(7),
        last_error: row.get(8),
    };
    Ok(rows.iter().map(entry).collect())
}

/// Events and targets by column; entries without a target are in the first alone.
fn columns(entries: &[Entry]) -> (Vec<i64>, Vec<i64>, Vec<&str>) {
    let all = entries.iter().map(|entry| entry.event).collect();
    let with_target = entries
        .iter()
        .filter_map(|entry| Some((entry.event, entry.target.as_deref()?)));
    let (events, targets) = with_target.unzip();
    (all, events, targets)
}

/// These are delivered (again).
pub fn replay(
    client: &mut postgres::Client,
    entries: &[Entry],
    now: UnixSecs,
) -> Result<(), DbError> {
    let (all, events, targets) = columns(entries);
    let mut tx = client.transaction()?;
    tx.execute(
        include_str!("../../sql/notify/release_held.sql"),
        &[&all, &now],
    )?;
    tx.execute(
        include_str!("../../sql/notify/replay_deliveries.sql"),
        &[&events, &targets, &now],
    )?;
    tx.execute(include_str!("../../sql/notify/announce_decision.sql"), &[])?;
    Ok(tx.commit()?)
}

/// These are not delivered any more.
pub fn discard(
    client: &mut postgres::Client,
    entries: &[Entry],
    now: UnixSecs,
) -> Result<(), DbError> {
    let (all, events, targets) = columns(entries);
    let mut tx = client.transaction()?;
    tx.execute(
        include_str!("../../sql/notify/discard_deliveries.sql"),
        &[&events, &targets, &now],
    )?;
    tx.execute(include_str!("../../sql/notify/discard_events.sql"), &[&all])?;
    tx.execute(include_str!("../../sql/notify/clear_pending.sql"), &[&all])?;
    tx.execute(include_str!("../../sql/notify/announce_decision.sql"), &[])?;
    Ok(tx.commit()?)
}
