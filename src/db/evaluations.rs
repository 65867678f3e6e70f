//! The rows of evaluations: what a jobset is evaluated from, what the last evaluation found, and all that a new one leaves.
//!
//! A [`Session`] holds the lock of a jobset's evaluation, so that there is one at a time, and writes everything in that session: who
//! has lost the lock cannot write. Does not know how inputs are fetched or jobs evaluated, nor which builds are new.
//!
//! Inside an evaluation's transaction no build of others is locked against its end: rows of `Builds` are only inserted, and foreign
//! keys lock against deletion alone. Which builds are current changes afterwards ([`Session::make_current`]), a thousand at a time.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use postgres::types::ToSql;
use postgres::{Client, GenericClient, Row, Transaction};

use super::connect::DbTarget;
use super::locks;
use super::DbError;
use crate::sys::clock::unix_now;

const FIND_LOCK_HOLDERS: &str = include_str!("../../sql/session/find_lock_holders.sql");
const TAKE_LOCK: &str = include_str!("../../sql/session/take_service_lock.sql");
const LIMIT_SESSION_WAIT: &str = include_str!("../../sql/eval/limit_session_wait.sql");
const WAIT_FOR_LOCK: &str = include_str!("../../sql/eval/wait_for_lock.sql");
const NOTIFY_ALL: &str = include_str!("../../sql/queue/notify_all.sql");

/// `hyev`, the first key of the locks of evaluations; the second is the jobset's id.
pub const LOCK_CLASS: i32 = 0x6879_6576;
/// An evaluation of the same jobset is waited for this long: as long as Hydra lets one take.
const OTHER_EVALUATION_MAX: Duration = Duration::from_secs(21_600);
/// Any other lock is waited for this long before the transaction is tried again.
const LOCK_WAIT: &str = "30s";
/// Tries of a transaction that lost a race.
const TRIES_MAX: u32 = 10;
/// The pause after the first such try; it grows with each.
const PAUSE: Duration = Duration::from_millis(200);
/// For how long a database that is away is waited for, again and again.
const DATABASE_AWAY_MAX: Duration = Duration::from_secs(600);
const RECONNECT_PAUSE: Duration = Duration::from_secs(1);
/// Builds whose being current changes in one transaction: few, since the queue runner puts off what it finds locked.
const CURRENT_BATCH: usize = 1_000;
/// Rows inserted by one statement.
const INSERT_BATCH: usize = 5_000;
/// Bytes of text in one statement that inserts builds, unless a single one has more. PostgreSQL ends the connection at 1 GiB.
const INSERT_BYTES_MAX: usize = 16 << 20;

/// What is evaluated.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Jobset {
    pub id: i32,
    pub nix_expr_input: Option<String>,
    pub nix_expr_path: Option<String>,
    pub flake: Option<String>,
    /// It is to be evaluated though nothing changed.
    pub force: bool,
    pub declaration: Option<Declaration>,
}

/// Where a project's specification is.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Declaration {
    pub file: String,
    /// Type and value of the input that has it.
    pub kind: String,
    pub value: String,
}

/// One value of an input.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct InputRow {
    pub name: String,
    pub kind: String,
    pub value: String,
    pub email_responsible: bool,
}

/// The newest evaluation of a jobset.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Latest {
    pub id: i32,
    pub hash: String,
    pub flake: Option<String>,
    /// What was wrong in it, and when it was seen; `None` if that is not known.
    pub error: Option<(String, i32)>,
}

/// A build of an earlier evaluation.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Member {
    pub id: i32,
    pub job: String,
    pub drv_path: String,
    pub finished: bool,
    pub status: Option<i32>,
    pub outputs: BTreeMap<String, Option<String>>,
}

/// A build to be made.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct NewBuild {
    pub job: String,
    pub nix_name: String,
    pub drv_path: String,
    pub system: String,
    pub outputs: BTreeMap<String, Option<String>>,
    pub description: Option<String>,
    pub license: Option<String>,
    pub homepage: Option<String>,
    pub maintainers: Option<String>,
    /// Seconds; 0 is no limit.
    pub max_silent: i32,
    pub timeout: i32,
    pub priority: i32,
    pub is_channel: bool,
}

/// The row of an evaluation.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct EvaluationRow {
    pub hash: String,
    pub timestamp: i32,
    /// Seconds.
    pub checkout_time: i32,
    pub eval_time: i32,
    /// How many builds it has, if they are not those of the evaluation before.
    pub builds: Option<i32>,
    pub flake: Option<String>,
    pub nix_expr_input: Option<String>,
    pub nix_expr_path: Option<String>,
    /// Of all jobs that could not be evaluated; may be empty.
    pub error: String,
    pub evaluator: Evaluator,
}

/// What evaluated the jobs (a row of `hydrad.evaluations`).
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Evaluator {
    pub program: &'static str,
    pub processes: i32,
    /// Memory of all processes together at its highest; 0 if it is not known.
    pub peak_bytes: i64,
}

/// What an evaluation was made from.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct EvaluationInput {
    pub name: String,
    pub kind: String,
    pub uri: Option<String>,
    pub revision: Option<String>,
    pub value: Option<String>,
    pub dependency: Option<i32>,
    pub path: String,
    pub sha256: Option<String>,
    pub short_rev_length: Option<i16>,
}

/// A notification to be sent at the commit: channel and payload.
pub type Notice = (&'static str, String);

/// The right to evaluate a jobset, as long as the session lives.
pub struct Session {
    target: DbTarget,
    application_name: String,
    client: Client,
    jobset: i32,
    /// The connection was lost since the lock was taken first: somebody else may have had it in between.
    renewed: bool,
}

impl Session {
    /// The session for a jobset that exists; `None` if it does not. While another evaluation of it is at work this waits, and
    /// tells so once.
    ///
    /// # Errors
    /// Of the database, or when the other evaluation does not end.
    pub fn open(
        target: &DbTarget,
        application_name: &str,
        project: &str,
        jobset: &str,
        tell: &dyn Fn(&str),
    ) -> Result<Option<Session>, DbError> {
        let mut client = target.connect(application_name)?;
        let Some(found) = jobset_in(&mut client, project, jobset)? else {
            return Ok(None);
        };
        let began = Instant::now();
        let mut told = false;
        while !take(&mut client, found.id)? {
            let others: Vec<String> = client
                .query(FIND_LOCK_HOLDERS, &[&LOCK_CLASS, &found.id])?
                .iter()
                .map(|row| locks::session(row).to_string())
                .collect();
            let words = format!(
                "another evaluation of this jobset is at work: {}",
                others.join(", ")
            );
            if began.elapsed() > OTHER_EVALUATION_MAX {
                return Err(DbError::Busy(words));
            }
            if !told {
                tell(&format!("{words}; waiting for its end"));
                told = true;
            }
            match client.execute(WAIT_FOR_LOCK, &[&LOCK_CLASS, &found.id]) {
                // Held twice is held.
                Ok(_) => break,
                Err(error) if super::error::is_retryable(&error) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(Some(Session {
            target: target.clone(),
            application_name: application_name.to_owned(),
            client,
            jobset: found.id,
            renewed: false,
        }))
    }

    pub fn jobset(&self) -> i32 {
        self.jobset
    }

    /// The connection, which was there a moment ago.
    ///
    /// # Errors
    /// As [`Session::transact`].
    pub fn connected(&mut self) -> Result<&mut Client, DbError> {
        self.transact(|tx| Ok(tx.batch_execute("")?))?;
        Ok(&mut self.client)
    }

    /// Reads or writes in one transaction, repeated when it lost a race, and in a new session when the connection was lost: then
    /// nobody knows whether the commit happened, so the work has to find out.
    ///
    /// # Errors
    /// Of the work; of the database if that stays away, or if another evaluation took the lock meanwhile.
    pub fn transact<T>(
        &mut self,
        mut work: impl FnMut(&mut Transaction<'_>) -> Result<T, DbError>,
    ) -> Result<T, DbError> {
        self.transact_knowing(|tx, _| work(tx))
    }

    /// The same; the work hears whether the session was lost since it was opened, so that another evaluation may have been at work.
    ///
    /// # Errors
    /// The same.
    pub fn transact_knowing<T>(
        &mut self,
        mut work: impl FnMut(&mut Transaction<'_>, bool) -> Result<T, DbError>,
    ) -> Result<T, DbError> {
        let mut tries = 0;
        let mut away: Option<Instant> = None;
        loop {
            let mut once = || -> Result<T, DbError> {
                if self.client.is_closed() {
                    self.client = self.target.connect(&self.application_name)?;
                    self.renewed = true;
                    // The server may need a moment to see that the old session is gone; what it commits is there then.
                    if !take(&mut self.client, self.jobset)? {
                        self.client
                            .execute(WAIT_FOR_LOCK, &[&LOCK_CLASS, &self.jobset])?;
                    }
                }
                let mut tx = self.client.transaction()?;
                let result = work(&mut tx, self.renewed)?;
                tx.commit()?;
                Ok(result)
            };
            match once() {
                Err(error) if error.is_lost() => {
                    let since = *away.get_or_insert_with(Instant::now);
                    if since.elapsed() > DATABASE_AWAY_MAX {
                        return Err(error);
                    }
                    log::warn!("{error}; trying again");
                    std::thread::sleep(RECONNECT_PAUSE);
                }
                // A build of the evaluation before that is deleted in this very moment breaks a foreign key.
                Err(error)
                    if tries < TRIES_MAX
                        && (error.is_retryable() || error.sql_state() == Some("23503")) =>
                {
                    tries += 1;
                    log::info!("trying again (try {tries} of {TRIES_MAX}): {error}");
                    std::thread::sleep(PAUSE * tries);
                }
                result => return result,
            }
        }
    }

    /// Makes the builds of the newest evaluation that changed anything the current ones: first those are marked, then the others
    /// are not any more, so that whoever reads meanwhile finds the old builds or a mixture, never none. What is as it should be
    /// stays; so this also finishes what a killed evaluation left. Gives the number of builds that changed.
    ///
    /// # Errors
    /// Of the database.
    pub fn make_current(&mut self) -> Result<usize, DbError> {
        let jobset = self.jobset;
        let Some(evaluation) = self.transact(|tx| newest_changed(tx, jobset))? else {
            return Ok(0);
        };
        let mut changed = 0;
        for (current, find) in [
            (1, include_str!("../../sql/eval/select_not_current.sql")),
            (0, include_str!("../../sql/eval/select_past.sql")),
        ] {
            let ids: Vec<i32> = self.transact(|tx| {
                let rows = match current {
                    1 => tx.query(find, &[&evaluation])?,
                    _ => tx.query(find, &[&evaluation, &jobset])?,
                };
                Ok(rows.iter().map(|row| row.get(0)).collect())
            })?;
            for some in ids.chunks(CURRENT_BATCH) {
                let sql = include_str!("../../sql/eval/set_current.sql");
                self.transact(|tx| Ok(tx.execute(sql, &[&some, &current])?))?;
            }
            changed += ids.len();
        }
        Ok(changed)
    }

    /// Sends notifications.
    ///
    /// # Errors
    /// Of the database.
    pub fn announce(&mut self, notices: &[Notice]) -> Result<(), DbError> {
        self.transact(|tx| notify(tx, notices))
    }
}

/// Takes the lock if it is free, and limits how long this session waits for others.
fn take(client: &mut Client, jobset: i32) -> Result<bool, DbError> {
    client.execute(LIMIT_SESSION_WAIT, &[&LOCK_WAIT])?;
    Ok(client.query_one(TAKE_LOCK, &[&LOCK_CLASS, &jobset])?.get(0))
}

/// The jobset, if it exists.
///
/// # Errors
/// Of the database, as with all of these.
pub fn jobset_in(
    client: &mut impl GenericClient,
    project: &str,
    jobset: &str,
) -> Result<Option<Jobset>, DbError> {
    let sql = include_str!("../../sql/eval/select_jobset.sql");
    let row = client.query_opt(sql, &[&project, &jobset])?;
    Ok(row.map(|row| {
        let text = |column| row.get::<_, Option<String>>(column);
        let file = text(5).filter(|file| !file.is_empty());
        Jobset {
            id: row.get(0),
            nix_expr_input: text(1),
            nix_expr_path: text(2),
            flake: text(3),
            force: row.get(4),
            declaration: file.map(|file| Declaration {
                file,
                kind: text(6).unwrap_or_default(),
                value: text(7).unwrap_or_default(),
            }),
        }
    }))
}

/// The inputs as configured, a row for each value.
pub fn inputs(
    tx: &mut Transaction<'_>,
    project: &str,
    jobset: &str,
) -> Result<Vec<InputRow>, DbError> {
    let sql = include_str!("../../sql/eval/select_inputs.sql");
    let rows = tx.query(sql, &[&project, &jobset])?;
    let read = |row: &Row| InputRow {
        name: row.get(0),
        kind: row.get(1),
        value: row.get(2),
        email_responsible: row.get(3),
    };
    Ok(rows.iter().map(read).collect())
}

/// The newest evaluation of a jobset, whether it changed anything or not.
pub fn latest(tx: &mut Transaction<'_>, jobset: i32) -> Result<Option<Latest>, DbError> {
    let row = tx.query_opt(include_str!("../../sql/eval/select_latest.sql"), &[&jobset])?;
    Ok(row.map(|row| Latest {
        id: row.get(0),
        hash: row.get(1),
        flake: row.get(2),
        error: row
            .get::<_, Option<String>>(3)
            .zip(row.get::<_, Option<i32>>(4)),
    }))
}

/// This evaluation, if it was committed although the connection was lost. Nothing is newer than `after` otherwise.
///
/// # Errors
/// [`DbError::Busy`] when another evaluation was written meanwhile.
pub fn committed(
    tx: &mut Transaction<'_>,
    jobset: i32,
    after: i32,
    row: &EvaluationRow,
) -> Result<Option<i32>, DbError> {
    let sql = include_str!("../../sql/eval/select_committed.sql");
    if let Some(found) = tx.query_opt(sql, &[&jobset, &after, &row.hash, &row.timestamp])? {
        return Ok(Some(found.get(0)));
    }
    match latest(tx, jobset)? {
        Some(other) if other.id > after => Err(DbError::Busy(format!(
            "the connection to the database was lost, and evaluation {} was written meanwhile",
            other.id
        ))),
        _ => Ok(None),
    }
}

/// The newest evaluation that changed the builds of a jobset.
pub fn newest_changed(tx: &mut Transaction<'_>, jobset: i32) -> Result<Option<i32>, DbError> {
    let row = tx.query_opt(
        include_str!("../../sql/eval/select_changed.sql"),
        &[&jobset],
    )?;
    Ok(row.map(|row| row.get(0)))
}

/// The builds of an evaluation, by id.
pub fn members(
    tx: &mut Transaction<'_>,
    evaluation: i32,
    jobset: i32,
) -> Result<Vec<Member>, DbError> {
    let sql = include_str!("../../sql/eval/select_members.sql");
    let mut members: Vec<Member> = Vec::new();
    for row in tx.query(sql, &[&evaluation, &jobset])? {
        let id = row.get(0);
        if members.last().is_none_or(|member| member.id != id) {
            members.push(Member {
                id,
                job: row.get(1),
                drv_path: row.get(2),
                finished: row.get(3),
                status: row.get(4),
                outputs: BTreeMap::new(),
            });
        }
        if let (Some(member), Some(name)) = (members.last_mut(), row.get(5)) {
            member.outputs.insert(name, row.get(6));
        }
    }
    Ok(members)
}

/// How many builds an evaluation has.
pub fn count_members(tx: &mut Transaction<'_>, evaluation: i32) -> Result<i64, DbError> {
    let sql = include_str!("../../sql/eval/count_members.sql");
    Ok(tx.query_one(sql, &[&evaluation])?.get(0))
}

/// The rows of an evaluation, of what was wrong in it and of what evaluated it. Gives the evaluation's id.
pub fn insert_evaluation(
    tx: &mut Transaction<'_>,
    jobset: i32,
    row: &EvaluationRow,
) -> Result<i32, DbError> {
    let sql = include_str!("../../sql/eval/insert_error.sql");
    let error: i32 = tx.query_one(sql, &[&row.error, &row.timestamp])?.get(0);
    let inserted = tx.query_one(
        include_str!("../../sql/eval/insert_evaluation.sql"),
        &[
            &jobset,
            &error,
            &row.timestamp,
            &row.checkout_time,
            &row.eval_time,
            &i32::from(row.builds.is_some()),
            &row.hash,
            &row.builds,
            &row.flake,
            &row.nix_expr_input,
            &row.nix_expr_path,
        ],
    )?;
    let id: i32 = inserted.get(0);
    let by = &row.evaluator;
    tx.execute(
        include_str!("../../sql/eval/insert_evaluator.sql"),
        &[&id, &by.program, &by.processes, &by.peak_bytes],
    )?;
    Ok(id)
}

/// Inserts builds with their outputs; gives their ids, in the same order, rising.
pub fn insert_builds(
    tx: &mut Transaction<'_>,
    jobset: i32,
    timestamp: i32,
    builds: &[NewBuild],
    mut progress: impl FnMut(usize),
) -> Result<Vec<i32>, DbError> {
    let count = i32::try_from(builds.len()).unwrap_or(i32::MAX);
    let sql = include_str!("../../sql/eval/reserve_builds.sql");
    let rows = tx.query(sql, &[&count])?;
    let ids: Vec<i32> = rows.iter().map(|row| row.get(0)).collect();
    let insert = tx.prepare(include_str!("../../sql/eval/insert_builds.sql"))?;
    let insert_outputs = tx.prepare(include_str!("../../sql/eval/insert_outputs.sql"))?;
    let mut done = 0;
    while done < builds.len() {
        let end = done + batch(&builds[done..]);
        let (ids, some) = (&ids[done..end], &builds[done..end]);
        let texts =
            |get: &dyn Fn(&NewBuild) -> String| -> Vec<String> { some.iter().map(get).collect() };
        let maybe = |get: &dyn Fn(&NewBuild) -> Option<String>| -> Vec<Option<String>> {
            some.iter().map(get).collect()
        };
        let numbers =
            |get: &dyn Fn(&NewBuild) -> i32| -> Vec<i32> { some.iter().map(get).collect() };
        let columns: [&(dyn ToSql + Sync); 15] = [
            &timestamp,
            &jobset,
            &ids,
            &texts(&|build| build.job.clone()),
            &texts(&|build| build.nix_name.clone()),
            &texts(&|build| build.drv_path.clone()),
            &texts(&|build| build.system.clone()),
            &maybe(&|build| build.description.clone()),
            &maybe(&|build| build.license.clone()),
            &maybe(&|build| build.homepage.clone()),
            &maybe(&|build| build.maintainers.clone()),
            &numbers(&|build| build.max_silent),
            &numbers(&|build| build.timeout),
            &numbers(&|build| i32::from(build.is_channel)),
            &numbers(&|build| build.priority),
        ];
        tx.execute(&insert, &columns)?;
        let mut owners: Vec<i32> = Vec::new();
        let mut names: Vec<&str> = Vec::new();
        let mut paths: Vec<Option<&str>> = Vec::new();
        for (id, build) in ids.iter().zip(some) {
            for (name, path) in &build.outputs {
                owners.push(*id);
                names.push(name);
                paths.push(path.as_deref());
            }
        }
        tx.execute(&insert_outputs, &[&owners, &names, &paths])?;
        done = end;
        progress(done);
    }
    Ok(ids)
}

/// How many of these builds one statement inserts: one at least.
fn batch(builds: &[NewBuild]) -> usize {
    let mut bytes: usize = 0;
    let fitting = builds.iter().take(INSERT_BATCH).take_while(|build| {
        bytes = bytes.saturating_add(text_bytes(build));
        bytes <= INSERT_BYTES_MAX
    });
    fitting.count().max(1)
}

fn text_bytes(build: &NewBuild) -> usize {
    let length = |text: &Option<String>| text.as_ref().map_or(0, String::len);
    let texts = [&build.job, &build.nix_name, &build.drv_path, &build.system];
    let maybe = [
        &build.description,
        &build.license,
        &build.homepage,
        &build.maintainers,
    ];
    let outputs = build.outputs.iter();
    texts.into_iter().map(String::len).sum::<usize>()
        + maybe.into_iter().map(length).sum::<usize>()
        + outputs
            .map(|(name, path)| name.len() + length(path))
            .sum::<usize>()
}

/// Which builds an evaluation has, and whether each is new.
pub fn insert_members(
    tx: &mut Transaction<'_>,
    evaluation: i32,
    builds: &BTreeMap<i32, bool>,
) -> Result<(), DbError> {
    let insert = tx.prepare(include_str!("../../sql/eval/insert_members.sql"))?;
    let all: Vec<(i32, i32)> = builds
        .iter()
        .map(|(id, new)| (*id, i32::from(*new)))
        .collect();
    for some in all.chunks(INSERT_BATCH) {
        let (ids, new): (Vec<i32>, Vec<i32>) = some.iter().copied().unzip();
        tx.execute(&insert, &[&evaluation, &ids, &new])?;
    }
    Ok(())
}

/// Members of aggregates: aggregate and constituent.
pub fn insert_constituents(tx: &mut Transaction<'_>, pairs: &[(i32, i32)]) -> Result<(), DbError> {
    let insert = tx.prepare(include_str!("../../sql/eval/insert_constituents.sql"))?;
    for some in pairs.chunks(INSERT_BATCH) {
        let (aggregates, constituents): (Vec<i32>, Vec<i32>) = some.iter().copied().unzip();
        tx.execute(&insert, &[&aggregates, &constituents])?;
    }
    Ok(())
}

/// What an evaluation was made from. `lengths`: whether there is a column for the length of a short revision (schema 85).
pub fn insert_inputs(
    tx: &mut Transaction<'_>,
    evaluation: i32,
    inputs: &[EvaluationInput],
    lengths: bool,
) -> Result<(), DbError> {
    let names: Vec<&str> = inputs.iter().map(|input| input.name.as_str()).collect();
    let kinds: Vec<&str> = inputs.iter().map(|input| input.kind.as_str()).collect();
    let maybe = |get: fn(&EvaluationInput) -> &Option<String>| -> Vec<Option<&str>> {
        inputs.iter().map(|input| get(input).as_deref()).collect()
    };
    let uris = maybe(|input| &input.uri);
    let revisions = maybe(|input| &input.revision);
    let values = maybe(|input| &input.value);
    let dependencies: Vec<Option<i32>> = inputs.iter().map(|input| input.dependency).collect();
    let paths: Vec<&str> = inputs.iter().map(|input| input.path.as_str()).collect();
    let hashes = maybe(|input| &input.sha256);
    let short: Vec<Option<i16>> = inputs.iter().map(|input| input.short_rev_length).collect();
    let columns: [&(dyn ToSql + Sync); 10] = [
        &evaluation,
        &names,
        &kinds,
        &uris,
        &revisions,
        &values,
        &dependencies,
        &paths,
        &hashes,
        &short,
    ];
    match lengths {
        true => tx.execute(
            include_str!("../../sql/eval/insert_inputs_85.sql"),
            &columns,
        )?,
        false => tx.execute(
            include_str!("../../sql/eval/insert_inputs.sql"),
            &columns[..9],
        )?,
    };
    Ok(())
}

/// Sends notifications at the commit, in this order, with their rows of the ledger.
pub fn notify(tx: &mut Transaction<'_>, notices: &[Notice]) -> Result<(), DbError> {
    let channels: Vec<&str> = notices.iter().map(|(channel, _)| *channel).collect();
    let payloads: Vec<&str> = notices
        .iter()
        .map(|(_, payload)| payload.as_str())
        .collect();
    if !notices.is_empty() {
        tx.query(NOTIFY_ALL, &[&channels, &payloads])?;
    }
    Ok(())
}

/// The jobset after a whole evaluation that began at `began`: what was wrong (maybe nothing), and that it was checked.
/// `trace` tells the notifier which evaluation changed the error.
pub fn finish_evaluation(
    tx: &mut Transaction<'_>,
    jobset: i32,
    error: &str,
    now: i32,
    began: i32,
    trace: &str,
) -> Result<(), DbError> {
    let sql = include_str!("../../sql/eval/finish_evaluation.sql");
    let changed = tx.query_opt(sql, &[&jobset, &error, &now, &began])?;
    tell_error(tx, changed, jobset, error, trace)
}

/// The jobset after an evaluation that failed as a whole.
pub fn finish_failed(
    tx: &mut Transaction<'_>,
    jobset: i32,
    error: &str,
    now: i32,
    trace: &str,
) -> Result<(), DbError> {
    let sql = include_str!("../../sql/eval/finish_failed.sql");
    let changed = tx.query_opt(sql, &[&jobset, &error, &now])?;
    tell_error(tx, changed, jobset, error, trace)
}

/// The jobset after an evaluation that was ended from outside. Nobody is told: it says nothing about the jobset.
pub fn finish_stopped(
    tx: &mut Transaction<'_>,
    jobset: i32,
    error: &str,
    now: i32,
) -> Result<(), DbError> {
    let sql = include_str!("../../sql/eval/finish_failed.sql");
    tx.query_opt(sql, &[&jobset, &error, &now])?;
    Ok(())
}

/// Tells the notifier of an error that is another one than before. With HYDRA_MAIL_TEST, as in Hydra, of any.
fn tell_error(
    tx: &mut Transaction<'_>,
    changed: Option<Row>,
    jobset: i32,
    error: &str,
    trace: &str,
) -> Result<(), DbError> {
    let changed = changed.is_some_and(|row| row.get(0));
    let test = std::env::var_os("HYDRA_MAIL_TEST").is_some();
    match !error.is_empty() && (changed || test) {
        true => notify(tx, &[("eval_error_changed", format!("{trace}\t{jobset}"))]),
        false => Ok(()),
    }
}

/// The jobset when an input could not be fetched.
pub fn finish_unfetched(
    tx: &mut Transaction<'_>,
    jobset: i32,
    error: &str,
    now: i32,
) -> Result<(), DbError> {
    let sql = include_str!("../../sql/eval/finish_unfetched.sql");
    tx.execute(sql, &[&jobset, &error, &now])?;
    Ok(())
}

/// The jobset when nothing changed since an evaluation, whose errors are in force again if a failed try left another.
pub fn finish_unchanged(
    tx: &mut Transaction<'_>,
    jobset: i32,
    latest: &Latest,
    now: i32,
) -> Result<(), DbError> {
    let (error, at) = latest.error.clone().unzip();
    let sql = include_str!("../../sql/eval/finish_unchanged.sql");
    tx.execute(sql, &[&jobset, &error, &at, &now])?;
    Ok(())
}

/// The time as rows have it.
pub fn now() -> i32 {
    i32::try_from(unix_now()).unwrap_or(i32::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_statement_has_a_bound_of_rows_and_of_bytes() {
        let build = |bytes: usize| NewBuild {
            description: Some("x".repeat(bytes)),
            ..NewBuild::default()
        };
        assert_eq!(batch(&vec![build(1); INSERT_BATCH + 1]), INSERT_BATCH);
        assert_eq!(batch(&vec![build(INSERT_BYTES_MAX / 4); 9]), 4);
        // A single one goes, however large.
        assert_eq!(batch(&[build(INSERT_BYTES_MAX + 1), build(1)]), 1);
    }
}
