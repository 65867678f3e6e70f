//! The writer: one thread that writes every record, in order, in groups of one transaction each.
//!
//! A record's rows and its notifications commit together. What cannot be written now is kept:
//!
//! * PostgreSQL away: the group is tried again until it works; nothing is lost, nothing new starts meanwhile.
//! * A deadlock or serialization failure: tried again at once.
//! * A build's row held by somebody else: the record of that build alone is deferred.
//! * A statement that fails for another reason (a build deleted meanwhile, odd data): the group is replayed
//!   record by record, and only the one at fault is given up, with a line in the log.
//!
//! After a lost connection nobody knows whether the last commit happened, so every statement can be
//! repeated: finished rows are guarded, and only rows that changed are announced.
//!
//! Knows the tables; does not know why anything is written.

mod usual_group;

use std::collections::{BTreeSet, HashMap, HashSet, VecDeque};
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::sync::Arc;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, RecvTimeoutError, Sender};

use super::locks::LockProof;
use super::payload;
use super::pool::{Pool, Tx};
use super::questions;
use super::DbError;
use crate::base::text;
use crate::model::{BuildId, BuildOutput, BuildStatus, MachineId, RunId, Ticket, UnixSecs};
use crate::nix::store_path::base_name;
use crate::plan::action::{Fail, FinishStep, Record, Succeed};
use crate::sys::clock::unix_now;
use crate::sys::heartbeat;

pub use usual_group::rehearse;
use usual_group::{EndColumns, Split, SuccessColumns};

/// Records in one transaction.
const GROUP_MAX: usize = 256;
/// How long a statement waits for a row that somebody else holds.
const LOCK_TIMEOUT: &str = "200ms";
/// How long a deferred record waits before it is tried again.
const DEFER: Duration = Duration::from_millis(500);
/// Pause between attempts while PostgreSQL is away.
const AWAY_PAUSE: Duration = Duration::from_secs(1);
/// How long one attempt waits for a connection; less than a stop may take.
const CONNECTION_MAX: Duration = Duration::from_secs(5);
/// A phase is written with other records, or after this time.
const PHASE_DELAY: Duration = Duration::from_millis(250);
/// Ended runs remembered for the failure records that name them.
const ENDED_RUNS_MAX: usize = 4_096;
/// Step counters remembered; far above what a queue needs.
const COUNTERS_MAX: usize = 1_000_000;
/// `BuildSteps.type`.
const STEP_BUILD: i32 = 0;
const STEP_SUBSTITUTION: i32 = 1;
/// The name under which Hydra records every substituted output.
const SUBSTITUTED_NAME: &str = "out";
/// `errorMsg` at most, bytes.
const MESSAGE_BYTES_MAX: usize = 64 << 10;

/// What the writer is asked for.
#[derive(Debug)]
pub enum Message {
    /// Records that came together, in order: they are written together where that is possible.
    Write(Vec<Entry>),
    /// Replace the `SystemStatus` row and announce it.
    Status(String),
    /// Answer a question of `hydrad.questions`.
    Answer(i64, String),
    /// Leave once everything before is written or `until` has passed.
    Stop { until: Instant },
}

/// One record under its ticket.
#[derive(Debug)]
pub struct Entry {
    pub ticket: Ticket,
    pub body: Body,
}

#[derive(Debug)]
pub enum Body {
    StartStep(StartStep),
    Record(Record),
    /// A step that an ended process left and that turned out to have succeeded.
    Adopt(Adoption),
    /// A busy row found at start whose machine did not finish it: ends as aborted, without a notification, as Hydra
    /// ends it.
    Abandon {
        build: BuildId,
        stepnr: i32,
    },
    /// A ticket whose record turned out not to be needed.
    Void,
}

/// The busy row of an attempt, made by the slot that has read the derivation.
#[derive(Clone, Debug)]
pub struct StartStep {
    pub run: RunId,
    pub build: BuildId,
    pub drv: String,
    /// The derivation that was resolved into this one, which gets a row that says so.
    pub resolved_from: Option<String>,
    pub system: String,
    pub machine: String,
    /// Name and path; no path where it is known only after the build.
    pub outputs: Vec<(String, Option<String>)>,
    pub announce: Vec<BuildId>,
    pub start: UnixSecs,
    pub done: Sender<StartAck>,
    /// There was an attempt to write it of which nobody knows whether it was committed.
    pub maybe_written: bool,
}

/// The success of a busy row found at start.
#[derive(Clone, Debug)]
pub struct Adoption {
    pub build: BuildId,
    pub stepnr: i32,
    pub stop: UnixSecs,
    pub log: Option<String>,
    /// The builds of the step's derivation, if any are unfinished.
    pub succeed: Succeed,
}

/// What became of a busy row.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum StartAck {
    Written,
    /// The build was deleted meanwhile: there is nothing to build for.
    BuildGone,
}

/// From a run, its derivation and whether another attempt follows to the path of its log.
pub type LogPath = Arc<dyn Fn(RunId, &str, bool) -> String + Send + Sync>;

/// Takes why PostgreSQL cannot be written to.
pub type Away = Arc<dyn Fn(Option<&str>) + Send + Sync>;

/// What the writer needs from the rest of the process.
pub struct Surroundings {
    pub pool: Pool,
    /// The backend that holds our advisory lock, and the lock's two keys; `None` while it is not held.
    pub lock: Arc<dyn Fn() -> Option<LockProof> + Send + Sync>,
    /// Told when the server says that this lock is not held, so that it is taken again.
    pub lock_lost: Arc<dyn Fn(LockProof) + Send + Sync>,
    pub machine_name: Arc<dyn Fn(MachineId) -> String + Send + Sync>,
    /// Path of the log of the current attempt of a derivation; with `keep`, moves it aside first and gives its new path.
    pub log_path: LogPath,
    /// Told why PostgreSQL cannot be written to, and `None` when it can again.
    pub away: Away,
    /// Told whenever more is committed.
    pub written: Arc<dyn Fn(Ticket) + Send + Sync>,
    /// The newest ticket up to which everything is committed.
    pub position: Arc<AtomicU64>,
    pub counters: Arc<WriterCounters>,
}

/// The row of a run.
#[derive(Clone, Debug)]
struct RunRow {
    build: BuildId,
    stepnr: i32,
    drv: String,
    start: i32,
    machine: String,
    system: String,
    outputs: Vec<(String, Option<String>)>,
}

impl RunRow {
    fn of(start: &StartStep, stepnr: i32) -> RunRow {
        RunRow {
            build: start.build,
            stepnr,
            drv: start.drv.clone(),
            start: seconds(start.start),
            machine: start.machine.clone(),
            system: start.system.clone(),
            outputs: start.outputs.clone(),
        }
    }
}

/// Changes to the writer's memory that become true with the commit.
#[derive(Default)]
struct Staged {
    counters: HashMap<BuildId, i32>,
    /// Builds that turned out to be deleted.
    gone: HashSet<BuildId>,
    /// Builds whose counter is not needed any more.
    finished: Vec<BuildId>,
    ended: Vec<RunId>,
    runs: HashMap<RunId, RunRow>,
    acks: Vec<(Sender<StartAck>, StartAck)>,
    deferred: Vec<Entry>,
    done: Vec<Ticket>,
}

/// How a group is written.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Way {
    /// By one statement.
    Starts,
    Ends,
    /// By a statement for each kind of record, which can do everything.
    Single,
}

/// What the writer has done.
#[derive(Default, Debug)]
pub struct WriterCounters {
    groups: AtomicU64,
    records: AtomicU64,
    failures: AtomicU64,
    busy_micros: AtomicU64,
    /// Records in the transaction under way.
    writing: AtomicU64,
    /// Unix time since which the database is away; 0: it is there.
    away_since: AtomicI64,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct WriterMetrics {
    /// Transactions committed, and records in them.
    pub groups: u64,
    pub records: u64,
    /// Transactions that did not work.
    pub failures: u64,
    /// Time spent in transactions, good or bad.
    pub busy: Duration,
    /// Records in the transaction under way.
    pub writing: u64,
    pub away_since: Option<UnixSecs>,
}

impl WriterCounters {
    pub fn metrics(&self) -> WriterMetrics {
        let load = |count: &AtomicU64| count.load(Ordering::Relaxed);
        WriterMetrics {
            groups: load(&self.groups),
            records: load(&self.records),
            failures: load(&self.failures),
            busy: Duration::from_micros(load(&self.busy_micros)),
            writing: load(&self.writing),
            away_since: Some(self.away_since.load(Ordering::Relaxed)).filter(|since| *since > 0),
        }
    }

    /// Counts one attempt to write so many records.
    fn count<T, E>(&self, records: usize, attempt: impl FnOnce() -> Result<T, E>) -> Result<T, E> {
        let records = records as u64;
        let began = Instant::now();
        self.writing.store(records, Ordering::Relaxed);
        let result = attempt();
        self.writing.store(0, Ordering::Relaxed);
        let micros = u64::try_from(began.elapsed().as_micros()).unwrap_or(u64::MAX);
        self.busy_micros.fetch_add(micros, Ordering::Relaxed);
        if result.is_ok() {
            self.groups.fetch_add(1, Ordering::Relaxed);
            self.records.fetch_add(records, Ordering::Relaxed);
        } else {
            self.failures.fetch_add(1, Ordering::Relaxed);
        }
        result
    }
}

enum Failure {
    /// PostgreSQL is away, or our lock is lost: try the same again later.
    Away(String),
    /// Try the same again at once.
    Retry,
    /// This group cannot be written as it is.
    Refused(DbError),
}

impl From<DbError> for Failure {
    fn from(error: DbError) -> Failure {
        if error.is_lost() {
            Failure::Away(error.to_string())
        } else if error.is_retryable() && !error.is_lock_timeout() {
            Failure::Retry
        } else {
            Failure::Refused(error)
        }
    }
}

pub struct Writer {
    around: Surroundings,
    counters: HashMap<BuildId, i32>,
    runs: HashMap<RunId, RunRow>,
    /// Runs whose row is finished, oldest first.
    ended: VecDeque<RunId>,
    deferred: VecDeque<(Instant, Entry)>,
    /// What came while PostgreSQL was away.
    backlog: VecDeque<Message>,
    /// Tickets done beyond the position.
    done_ahead: BTreeSet<u64>,
    status: Option<String>,
    answers: Vec<(i64, String)>,
    stop: Option<Instant>,
    away_since: Option<Instant>,
}

impl Writer {
    pub fn new(around: Surroundings) -> Writer {
        Writer {
            around,
            counters: HashMap::new(),
            runs: HashMap::new(),
            ended: VecDeque::new(),
            deferred: VecDeque::new(),
            backlog: VecDeque::new(),
            done_ahead: BTreeSet::new(),
            status: None,
            answers: Vec::new(),
            stop: None,
            away_since: None,
        }
    }

    /// Writes until told to stop or until nobody can send any more.
    pub fn run(mut self, inbox: &Receiver<Message>) {
        let mut waiting: VecDeque<Entry> = VecDeque::new();
        let mut phase_since: Option<Instant> = None;
        loop {
            heartbeat::idle("waiting for records");
            self.receive(inbox, &mut waiting, &mut phase_since);
            heartbeat::busy("writing records");
            if self.stop.is_some_and(|until| Instant::now() >= until)
                || (self.stop.is_some() && waiting.is_empty() && self.deferred.is_empty())
            {
                if !waiting.is_empty() || !self.deferred.is_empty() {
                    log::warn!(
                        "leaving {} records unwritten; the next start finds their work again",
                        waiting.len() + self.deferred.len()
                    );
                }
                return;
            }
            let group = self.next_group(&mut waiting);
            if !group.is_empty() {
                self.write(group, inbox);
            }
            if let Some(status) = self.status.take() {
                self.write_status(&status);
            }
            if !self.answers.is_empty() {
                self.write_answers();
            }
            if waiting.is_empty() {
                phase_since = None;
            }
        }
    }

    /// Replaces the status row, in a transaction of its own: whoever asked asks again if it fails.
    fn write_status(&mut self, status: &str) {
        if (self.around.lock)().is_none() {
            return;
        }
        let written = (|| {
            let mut conn = self.around.pool.get(Duration::from_secs(5))?;
            let mut tx = conn.transaction()?;
            tx.execute(
                include_str!("../../sql/queue/replace_system_status.sql"),
                &[&status],
            )?;
            tx.query(
                include_str!("../../sql/queue/notify_all.sql"),
                &[&vec!["status_dumped"], &vec![""]],
            )?;
            tx.commit()
        })();
        if let Err(error) = written {
            log::error!("the status row could not be written: {error}");
        }
    }

    /// Whoever asked asks again, or does without.
    fn write_answers(&mut self) {
        let answers = std::mem::take(&mut self.answers);
        if (self.around.lock)().is_none() {
            return;
        }
        let written = (self.around.pool)
            .get(CONNECTION_MAX)
            .and_then(|mut conn| questions::answer(&mut conn, &answers));
        if let Err(error) = written {
            log::error!("{} answers could not be written: {error}", answers.len());
        }
    }

    /// Waits for something to write, then takes all that has come.
    fn receive(
        &mut self,
        inbox: &Receiver<Message>,
        waiting: &mut VecDeque<Entry>,
        phase_since: &mut Option<Instant>,
    ) {
        loop {
            let urgent = self.status.is_some()
                || !self.answers.is_empty()
                || self.stop.is_some()
                || waiting.iter().any(|entry| {
                    !matches!(entry.body, Body::Record(Record::Phase { .. }) | Body::Void)
                });
            let now = Instant::now();
            let deadline = if urgent {
                now
            } else {
                let phase = phase_since.map(|since| since + PHASE_DELAY);
                let deferred = self.deferred.front().map(|(at, _)| *at);
                [phase, deferred]
                    .into_iter()
                    .flatten()
                    .min()
                    .unwrap_or(now + Duration::from_secs(3600))
            };
            let message = match self.backlog.pop_front() {
                Some(message) => Ok(message),
                None => inbox.recv_deadline(deadline),
            };
            match message {
                Ok(Message::Write(entries)) => {
                    if waiting.is_empty() {
                        *phase_since = Some(now);
                    }
                    for entry in entries {
                        // Of a run's phases only the newest unwritten one matters, and none once its end is here.
                        self.drop_older_phase(waiting, &entry);
                        waiting.push_back(entry);
                    }
                }
                Ok(Message::Status(json)) => self.status = Some(json),
                Ok(Message::Answer(id, json)) => self.answers.push((id, json)),
                Ok(Message::Stop { until }) => self.stop = Some(until),
                Err(RecvTimeoutError::Timeout) => return,
                Err(RecvTimeoutError::Disconnected) => {
                    self.stop.get_or_insert_with(Instant::now);
                    return;
                }
            }
            let is_all = self.backlog.is_empty() && inbox.is_empty();
            if waiting.len() >= GROUP_MAX || (self.stop.is_some() && is_all) {
                return;
            }
        }
    }

    fn drop_older_phase(&mut self, waiting: &mut VecDeque<Entry>, entry: &Entry) {
        let run = match &entry.body {
            Body::Record(Record::Phase { run, .. }) => *run,
            Body::Record(Record::FinishStep(finish)) => finish.run,
            _ => return,
        };
        let is_older =
            |e: &Entry| matches!(&e.body, Body::Record(Record::Phase { run: r, .. }) if *r == run);
        if let Some(at) = waiting.iter().rposition(is_older) {
            if let Some(old) = waiting.remove(at) {
                waiting.push_back(Entry {
                    ticket: old.ticket,
                    body: Body::Void,
                });
            }
        }
    }

    /// The next records to write together: cut before a notification that would equal an earlier one, since
    /// PostgreSQL collapses equal ones within a transaction; deferred ones first.
    fn next_group(&mut self, waiting: &mut VecDeque<Entry>) -> Vec<Entry> {
        let mut group = Vec::new();
        let mut announced: HashSet<(bool, BuildId)> = HashSet::new();
        let now = Instant::now();
        while self.deferred.front().is_some_and(|(at, _)| *at <= now) && group.len() < GROUP_MAX {
            let Some((_, entry)) = self.deferred.pop_front() else {
                break;
            };
            if is_of(&entry.body, &self.unwritten_starts()) {
                self.defer(vec![entry]);
                continue;
            }
            announced.extend(announcements(&entry.body));
            let followers = self.take_followers(&entry.body);
            group.push(entry);
            group.extend(followers);
        }
        // What belongs to a run whose row is not yet written waits behind it.
        let unwritten = self.unwritten_starts();
        while group.len() < GROUP_MAX {
            let Some(entry) = waiting.front() else { break };
            if is_of(&entry.body, &unwritten) {
                self.defer(waiting.pop_front().into_iter().collect());
                continue;
            }
            let keys = announcements(&entry.body);
            if keys.iter().any(|key| announced.contains(key)) {
                break;
            }
            announced.extend(keys);
            group.extend(waiting.pop_front());
        }
        group
    }

    /// Writes a group, whatever it takes.
    fn write(&mut self, group: Vec<Entry>, inbox: &Receiver<Message>) {
        if self.away_since.is_some() {
            return self.write_by(Way::Single, group, inbox);
        }
        match usual_group::split(group, self) {
            Split::Usual { ends, starts } => {
                for (way, part) in [(Way::Ends, ends), (Way::Starts, starts)] {
                    if !part.is_empty() {
                        self.write_by(way, part, inbox);
                    }
                }
            }
            Split::Other(group) => self.write_by(Way::Single, group, inbox),
        }
    }

    fn write_by(&mut self, mut way: Way, mut group: Vec<Entry>, inbox: &Receiver<Message>) {
        let mut retries = 0u32;
        loop {
            heartbeat::busy("writing records");
            let counters = self.around.counters.clone();
            let records = group.len();
            let attempt = || match way {
                Way::Starts => usual_group::write_starts(self, &mut group),
                Way::Ends => usual_group::write_ends(self, &group),
                Way::Single => self
                    .write_group(&mut group)
                    .map(|staged| (staged, Vec::new())),
            };
            match counters.count(records, attempt) {
                Ok((staged, left)) => {
                    counters.away_since.store(0, Ordering::Relaxed);
                    if let Some(since) = self.away_since.take() {
                        log::info!(
                            "the database is back after {} s; writing goes on",
                            since.elapsed().as_secs()
                        );
                        (self.around.away)(None);
                    }
                    self.commit(staged);
                    if left.is_empty() {
                        return;
                    }
                    let mut place = 0;
                    group.retain(|_| {
                        place += 1;
                        left.contains(&(place - 1))
                    });
                    way = Way::Single;
                }
                Err(Failure::Refused(error)) if way != Way::Single => {
                    log::debug!(
                        "a group of {} records is not written by one statement: {error}",
                        group.len()
                    );
                    way = Way::Single;
                }
                Err(Failure::Away(reason)) => {
                    way = Way::Single;
                    if self.away_since.is_none() {
                        log::error!("the database is away: {reason}; {} records wait, nothing new is started",
                            group.len());
                        self.away_since = Some(Instant::now());
                        (self.around.away)(Some(&reason));
                        counters.away_since.store(unix_now(), Ordering::Relaxed);
                    }
                    if self.stop.is_some_and(|until| Instant::now() >= until) {
                        log::warn!(
                            "leaving {} records unwritten; the next start finds their work again",
                            group.len()
                        );
                        return;
                    }
                    self.pause(inbox);
                }
                Err(Failure::Retry) if retries < 20 => {
                    retries += 1;
                    log::debug!("database transaction retried ({retries})");
                }
                Err(Failure::Retry) => {
                    log::warn!(
                        "{} records could not be written for a conflict; they are tried again",
                        group.len()
                    );
                    self.defer(group);
                    return;
                }
                Err(Failure::Refused(error)) => {
                    self.replay(group, error, inbox);
                    return;
                }
            }
        }
    }

    /// Waits before the next attempt. What comes meanwhile is kept for later; to be told to stop is heard at once.
    fn pause(&mut self, inbox: &Receiver<Message>) {
        let until = Instant::now() + AWAY_PAUSE;
        heartbeat::idle("waiting for the database");
        loop {
            match inbox.recv_deadline(until) {
                Ok(Message::Stop { until }) => {
                    self.stop = Some(until);
                    return;
                }
                Ok(message) => self.backlog.push_back(message),
                Err(RecvTimeoutError::Timeout) => return,
                Err(RecvTimeoutError::Disconnected) => {
                    let stop = *self.stop.get_or_insert_with(Instant::now);
                    std::thread::sleep(
                        AWAY_PAUSE.min(stop.saturating_duration_since(Instant::now())),
                    );
                    return;
                }
            }
        }
    }

    /// One record of the group is at fault: write them one by one.
    fn replay(&mut self, mut group: Vec<Entry>, error: DbError, inbox: &Receiver<Message>) {
        if group.len() > 1 {
            log::debug!(
                "a group of {} records is written one by one: {error}",
                group.len()
            );
            for entry in group {
                if is_of(&entry.body, &self.unwritten_starts()) {
                    self.defer(vec![entry]);
                } else {
                    self.write(vec![entry], inbox);
                }
            }
            return;
        }
        if error.is_lock_timeout() || error.is_cancelled() {
            self.defer(group);
            return;
        }
        let Some(entry) = group.pop() else { return };
        log::error!(
            "a database record is given up: {error}; it was {}",
            describe(&entry.body)
        );
        if let Body::StartStep(start) = &entry.body {
            let _ = start.done.try_send(StartAck::BuildGone);
        }
        self.commit(Staged {
            done: vec![entry.ticket],
            ..Staged::default()
        });
    }

    /// The runs whose busy row waits to be written.
    fn unwritten_starts(&self) -> HashSet<RunId> {
        let starts = self
            .deferred
            .iter()
            .filter_map(|(_, entry)| match &entry.body {
                Body::StartStep(start) => Some(start.run),
                _ => None,
            });
        starts.collect()
    }

    /// What waits for this start.
    fn take_followers(&mut self, body: &Body) -> Vec<Entry> {
        let Body::StartStep(start) = body else {
            return Vec::new();
        };
        let run = HashSet::from([start.run]);
        let all = std::mem::take(&mut self.deferred);
        let (followers, rest) = all
            .into_iter()
            .partition::<VecDeque<_>, _>(|(_, entry)| is_of(&entry.body, &run));
        self.deferred = rest;
        followers.into_iter().map(|(_, entry)| entry).collect()
    }

    fn defer(&mut self, group: Vec<Entry>) {
        let at = Instant::now() + DEFER;
        self.deferred
            .extend(group.into_iter().map(|entry| (at, entry)));
    }

    fn commit(&mut self, staged: Staged) {
        self.counters.extend(staged.counters);
        for build in staged.finished.iter().chain(&staged.gone) {
            self.counters.remove(build);
        }
        if self.counters.len() > COUNTERS_MAX {
            // Builds that went away unnoticed; a counter that is missed is read again.
            self.counters.clear();
        }
        self.runs.extend(staged.runs);
        self.ended.extend(staged.ended);
        // A failure's record follows the end of its run at once; a while later nothing asks for the run.
        while self.ended.len() > ENDED_RUNS_MAX {
            if let Some(run) = self.ended.pop_front() {
                self.runs.remove(&run);
            }
        }
        for (to, ack) in staged.acks {
            // The slot may have given up waiting.
            let _ = to.try_send(ack);
        }
        self.defer(staged.deferred);
        let before = self.around.position.load(Ordering::SeqCst);
        let mut position = before;
        self.done_ahead
            .extend(staged.done.iter().map(|ticket| ticket.0));
        while self.done_ahead.remove(&(position + 1)) {
            position += 1;
        }
        if position > before {
            self.around.position.store(position, Ordering::SeqCst);
            (self.around.written)(Ticket(position));
        }
    }

    /// Makes the busy rows of living runs again, where they were lost.
    fn restore_steps(&self, tx: &mut Tx<'_>) -> Result<(), DbError> {
        let ended: HashSet<&RunId> = self.ended.iter().collect();
        let living: Vec<&RunRow> = self
            .runs
            .iter()
            .filter(|(run, _)| !ended.contains(run))
            .map(|(_, row)| row)
            .collect();
        if living.is_empty() {
            return Ok(());
        }
        let build: Vec<i32> = living.iter().map(|row| row.build.0).collect();
        let stepnr: Vec<i32> = living.iter().map(|row| row.stepnr).collect();
        let drv: Vec<&str> = living.iter().map(|row| row.drv.as_str()).collect();
        let start: Vec<i32> = living.iter().map(|row| row.start).collect();
        let machine: Vec<&str> = living.iter().map(|row| row.machine.as_str()).collect();
        let system: Vec<&str> = living.iter().map(|row| row.system.as_str()).collect();
        tx.execute(
            include_str!("../../sql/queue/restore_steps.sql"),
            &[&build, &stepnr, &drv, &start, &machine, &system],
        )?;
        let outputs: Vec<(&RunRow, &(String, Option<String>))> = living
            .iter()
            .flat_map(|row| row.outputs.iter().map(move |output| (*row, output)))
            .collect();
        let build: Vec<i32> = outputs.iter().map(|(row, _)| row.build.0).collect();
        let stepnr: Vec<i32> = outputs.iter().map(|(row, _)| row.stepnr).collect();
        let name: Vec<&str> = outputs
            .iter()
            .map(|(_, output)| output.0.as_str())
            .collect();
        let path: Vec<Option<&str>> = outputs
            .iter()
            .map(|(_, output)| output.1.as_deref())
            .collect();
        tx.execute(
            include_str!("../../sql/queue/insert_step_outputs.sql"),
            &[&build, &stepnr, &name, &path],
        )?;
        Ok(())
    }

    fn proof(&self) -> Result<LockProof, Failure> {
        (self.around.lock)()
            .ok_or_else(|| Failure::Away("our lock on the database is not held".into()))
    }

    fn lock_lost(&self, proof: LockProof) -> Failure {
        (self.around.lock_lost)(proof);
        Failure::Away("another session may have taken our lock on the database".into())
    }

    fn write_group(&mut self, group: &mut [Entry]) -> Result<Staged, Failure> {
        let mut staged = Staged::default();
        if group.iter().all(|entry| matches!(entry.body, Body::Void)) {
            staged.done.extend(group.iter().map(|entry| entry.ticket));
            return Ok(staged);
        }
        let proof = self.proof()?;
        let mut conn = self.around.pool.get(CONNECTION_MAX)?;
        let mut tx = conn.transaction()?;
        let held: bool = tx.query(
            include_str!("../../sql/queue/guard_transaction.sql"),
            &[
                &proof.backend_pid,
                &proof.class,
                &proof.object,
                &LOCK_TIMEOUT,
                &durability(group),
            ],
        )?[0]
            .get(2);
        if !held {
            return Err(self.lock_lost(proof));
        }
        if self.away_since.is_some() {
            self.restore_steps(&mut tx)?;
        }
        let mut work = GroupWork {
            writer: self,
            tx: &mut tx,
            staged: &mut staged,
            notify: Vec::new(),
        };
        work.write(group)?;
        if let Err(error) = tx.commit() {
            if error.is_lost() {
                note_maybe_written(group);
            }
            return Err(error.into());
        }
        Ok(staged)
    }
}

impl Body {
    /// The success in it, if it is one.
    fn succeed(&self) -> Option<&Succeed> {
        match self {
            Body::Record(Record::Succeed(succeed)) => Some(succeed),
            Body::Adopt(adoption) => Some(&adoption.succeed),
            _ => None,
        }
    }
}

/// The connection was lost in a commit: nobody knows whether the rows of starts are there.
fn note_maybe_written(group: &mut [Entry]) {
    for entry in group {
        if let Body::StartStep(start) = &mut entry.body {
            start.maybe_written = true;
        }
    }
}

/// Whether the commit of a group waits for the disk. A busy row only says that an attempt has begun: should a crash of
/// the server lose it, it is made again when the server is back. What has ended must not be lost.
fn durability(group: &[Entry]) -> &'static str {
    let may_be_lost = |entry: &Entry| {
        matches!(
            entry.body,
            Body::StartStep(_) | Body::Record(Record::Phase { .. }) | Body::Void
        )
    };
    if group.iter().all(may_be_lost) {
        "off"
    } else {
        "on"
    }
}

/// What a record will announce, as (is a start, build): equal ones must not share a transaction.
fn announcements(body: &Body) -> Vec<(bool, BuildId)> {
    match body {
        Body::StartStep(start) => start.announce.iter().map(|id| (true, *id)).collect(),
        Body::Record(Record::Fail(fail)) => vec![(false, fail.primary)],
        Body::Record(Record::Abort { builds, .. }) => {
            builds.iter().map(|id| (false, *id)).collect()
        }
        body => body
            .succeed()
            .into_iter()
            .flat_map(|s| &s.builds)
            .map(|(id, _)| (false, *id))
            .collect(),
    }
}

fn builds_of_starts(group: &[Entry]) -> Vec<BuildId> {
    let starts = group.iter().filter_map(|entry| match &entry.body {
        Body::StartStep(start) => Some(start.build),
        Body::Record(Record::Substitute { build, .. }) => Some(*build),
        _ => None,
    });
    starts.collect()
}

/// Whether a record, the start itself apart, is about one of these runs.
fn is_of(body: &Body, runs: &HashSet<RunId>) -> bool {
    match body {
        Body::Record(Record::Phase { run, .. }) => runs.contains(run),
        Body::Record(Record::FinishStep(finish)) => runs.contains(&finish.run),
        Body::Record(Record::Fail(fail)) => fail.run.is_some_and(|run| runs.contains(&run)),
        _ => false,
    }
}

fn describe(body: &Body) -> String {
    match body {
        Body::StartStep(start) => format!("the start of {} for build {}", start.drv, start.build),
        Body::Record(Record::Phase { run, phase }) => {
            format!("phase '{}' of run {run}", phase.text())
        }
        Body::Record(Record::FinishStep(finish)) => format!("the end of run {}", finish.run),
        Body::Record(Record::Succeed(succeed)) => {
            format!("the success of builds {:?}", succeed.builds)
        }
        Body::Record(Record::Fail(fail)) => format!(
            "the failure of {} builds with {}",
            fail.builds.len(),
            fail.drv
        ),
        Body::Record(Record::Substitute { build, drv, .. }) => {
            format!("the substitution of outputs of {drv} for build {build}")
        }
        Body::Record(Record::Abort { builds, drv, .. }) => {
            format!("the end of {} builds of {drv}", builds.len())
        }
        Body::Adopt(adoption) => format!(
            "step {} of build {}, found finished",
            adoption.stepnr, adoption.build
        ),
        Body::Abandon { build, stepnr } => format!("step {stepnr} of build {build}, left busy"),
        Body::Void => "nothing".into(),
    }
}

/// One transaction under way.
struct GroupWork<'a, 'c> {
    writer: &'a Writer,
    tx: &'a mut Tx<'c>,
    staged: &'a mut Staged,
    notify: Vec<(&'static str, String)>,
}

/// Rows for insert_steps, by column.
#[derive(Default)]
struct StepRows {
    build: Vec<i32>,
    stepnr: Vec<i32>,
    /// One of the two kinds of step, [`STEP_BUILD`] or [`STEP_SUBSTITUTION`].
    kind: Vec<i32>,
    drv: Vec<String>,
    busy: Vec<i32>,
    status: Vec<Option<i32>>,
    start: Vec<Option<i32>>,
    stop: Vec<Option<i32>>,
    machine: Vec<String>,
    system: Vec<Option<String>>,
    propagated_from: Vec<Option<i32>>,
    message: Vec<Option<String>>,
    outputs: Vec<(i32, i32, String, Option<String>)>,
}

/// Builds for fail_builds, by column.
#[derive(Default)]
struct FailRows {
    seen: HashSet<BuildId>,
    id: Vec<i32>,
    status: Vec<i32>,
    start: Vec<i32>,
    stop: Vec<i32>,
    cached: Vec<i32>,
    pending: Vec<Option<i32>>,
}

impl GroupWork<'_, '_> {
    fn write(&mut self, group: &[Entry]) -> Result<(), Failure> {
        let free = self.lock_builds(group)?;
        self.insert_steps(group, &free)?;
        self.update_phases(group)?;
        let finished = self.finish_steps(group)?;
        self.finish_builds(group, &free)?;
        self.fail_builds(group, &free)?;
        // The notifications follow the order of the records.
        for entry in group.iter() {
            self.announce(&entry.body, &free, &finished);
        }
        if !self.notify.is_empty() {
            let (channels, payloads): (Vec<&str>, Vec<&str>) = self
                .notify
                .iter()
                .map(|(channel, payload)| (*channel, payload.as_str()))
                .unzip();
            self.tx.execute(
                include_str!("../../sql/queue/notify_all.sql"),
                &[&channels, &payloads],
            )?;
        }
        self.staged
            .done
            .extend(group.iter().map(|entry| entry.ticket));
        self.postpone_held(group, &free);
        Ok(())
    }

    /// Locks the rows of the builds that this group finishes, in id order; says which of them we hold
    /// and which somebody else does.
    fn lock_builds(&mut self, group: &[Entry]) -> Result<Builds, Failure> {
        let mut ids: Vec<i32> = Vec::new();
        for entry in group {
            if let Some(succeed) = entry.body.succeed() {
                ids.extend(succeed.builds.iter().map(|(id, _)| id.0));
            }
            match &entry.body {
                Body::Record(Record::Fail(fail)) => {
                    ids.extend(fail.builds.iter().map(|build| build.id.0))
                }
                Body::Record(Record::Abort { builds, .. }) => {
                    ids.extend(builds.iter().map(|id| id.0))
                }
                _ => {}
            }
        }
        let unstartable = self.lock_builds_of_starts(group)?;
        if ids.is_empty() {
            return Ok(Builds {
                unstartable,
                ..Builds::default()
            });
        }
        ids.sort_unstable();
        ids.dedup();
        let rows = self.tx.query(
            include_str!("../../sql/queue/lock_unfinished_builds.sql"),
            &[&ids],
        )?;
        let free: HashSet<BuildId> = rows.iter().map(|row| BuildId(row.get(0))).collect();
        ids.retain(|id| !free.contains(&BuildId(*id)));
        let mut held = HashSet::new();
        if !ids.is_empty() {
            let rows = self.tx.query(
                include_str!("../../sql/queue/select_unfinished_builds.sql"),
                &[&ids],
            )?;
            held.extend(rows.iter().map(|row| BuildId(row.get(0))));
        }
        Ok(Builds {
            free,
            held,
            unstartable,
        })
    }

    /// Keeps the builds of starts from being deleted; gives those that somebody else holds already.
    fn lock_builds_of_starts(&mut self, group: &[Entry]) -> Result<HashSet<BuildId>, Failure> {
        let mut ids = builds_of_starts(group);
        if ids.is_empty() {
            return Ok(HashSet::new());
        }
        ids.sort_unstable();
        ids.dedup();
        let mut ids: Vec<i32> = ids.iter().map(|id| id.0).collect();
        let rows = self.tx.query(
            include_str!("../../sql/queue/lock_builds_of_starts.sql"),
            &[&ids],
        )?;
        let locked: HashSet<i32> = rows.iter().map(|row| row.get(0)).collect();
        ids.retain(|id| !locked.contains(id));
        if ids.is_empty() {
            return Ok(HashSet::new());
        }
        let rows = self.tx.query(
            include_str!("../../sql/queue/select_existing_builds.sql"),
            &[&ids],
        )?;
        Ok(rows.iter().map(|row| BuildId(row.get(0))).collect())
    }

    /// Inserts the busy rows of starts and the finished rows of propagated failures.
    fn insert_steps(&mut self, group: &[Entry], builds: &Builds) -> Result<(), Failure> {
        for attempt in 0..4 {
            let mut rows = StepRows::default();
            // What was fetched first: a start in the same group may have waited for it.
            self.collect_substituted(group, builds, &mut rows)?;
            self.collect_starts(group, builds, &mut rows)?;
            self.collect_propagated(group, builds, &mut rows)?;
            if rows.build.is_empty() {
                return Ok(());
            }
            let inserted = self.tx.query(
                include_str!("../../sql/queue/insert_steps.sql"),
                &[
                    &rows.build,
                    &rows.stepnr,
                    &rows.kind,
                    &rows.drv,
                    &rows.busy,
                    &rows.status,
                    &rows.start,
                    &rows.stop,
                    &rows.machine,
                    &rows.system,
                    &rows.propagated_from,
                    &rows.message,
                ],
            )?;
            let inserted: HashSet<(i32, i32)> = inserted
                .iter()
                .map(|row| (row.get(0), row.get(1)))
                .collect();
            let conflicts: Vec<BuildId> = (0..rows.build.len())
                .filter(|&i| !inserted.contains(&(rows.build[i], rows.stepnr[i])))
                .map(|i| BuildId(rows.build[i]))
                .collect();
            if conflicts.is_empty() {
                return self.insert_step_outputs(&rows);
            }
            // Somebody else numbered a step of these builds, or they were deleted: start the group anew
            // with fresh counters. A savepoint would save work only in this rare case.
            if attempt == 3 {
                break;
            }
            self.forget_rows(&rows)?;
        }
        Err(Failure::Retry)
    }

    /// Takes back the rows that this transaction has just inserted, so that they can be numbered anew.
    fn forget_rows(&mut self, rows: &StepRows) -> Result<(), Failure> {
        self.tx.execute(
            include_str!("../../sql/queue/delete_own_steps.sql"),
            &[&rows.build, &rows.stepnr],
        )?;
        let builds: Vec<BuildId> = rows.build.iter().map(|id| BuildId(*id)).collect();
        self.staged.runs.clear();
        self.staged.acks.clear();
        self.read_counters(&builds)
    }

    fn insert_step_outputs(&mut self, rows: &StepRows) -> Result<(), Failure> {
        if rows.outputs.is_empty() {
            return Ok(());
        }
        let build: Vec<i32> = rows.outputs.iter().map(|o| o.0).collect();
        let stepnr: Vec<i32> = rows.outputs.iter().map(|o| o.1).collect();
        let name: Vec<&str> = rows.outputs.iter().map(|o| o.2.as_str()).collect();
        let path: Vec<Option<&str>> = rows.outputs.iter().map(|o| o.3.as_deref()).collect();
        self.tx.execute(
            include_str!("../../sql/queue/insert_step_outputs.sql"),
            &[&build, &stepnr, &name, &path],
        )?;
        Ok(())
    }

    /// Takes away what earlier attempts to write this row may have left.
    fn delete_leftovers(&mut self, start: &StartStep) -> Result<(), Failure> {
        if !start.maybe_written {
            return Ok(());
        }
        let known: Vec<i32> = self
            .writer
            .runs
            .values()
            .chain(self.staged.runs.values())
            .filter(|row| row.build == start.build)
            .map(|row| row.stepnr)
            .collect();
        self.tx.execute(
            include_str!("../../sql/queue/delete_leftover_step.sql"),
            &[
                &start.build.0,
                &known,
                &start.drv,
                &seconds(start.start),
                &start.machine,
            ],
        )?;
        Ok(())
    }

    fn collect_starts(
        &mut self,
        group: &[Entry],
        builds: &Builds,
        rows: &mut StepRows,
    ) -> Result<(), Failure> {
        let unknown = builds_of_starts(group);
        self.reseed(&unknown)?;
        for entry in group {
            let Body::StartStep(start) = &entry.body else {
                continue;
            };
            if builds.unstartable.contains(&start.build) {
                continue;
            }
            self.delete_leftovers(start)?;
            let mut next = self.next_stepnr(start.build);
            if let (Some(number), Some(from)) = (next, &start.resolved_from) {
                if self.insert_resolved(start, from, number)? {
                    for (name, _) in &start.outputs {
                        rows.outputs
                            .push((start.build.0, number, name.clone(), None));
                    }
                    next = self.next_stepnr(start.build);
                }
            }
            let Some(stepnr) = next else {
                self.staged
                    .acks
                    .push((start.done.clone(), StartAck::BuildGone));
                continue;
            };
            rows.build.push(start.build.0);
            rows.stepnr.push(stepnr);
            rows.kind.push(STEP_BUILD);
            rows.drv.push(start.drv.clone());
            rows.busy.push(1);
            rows.status.push(None);
            rows.start.push(Some(seconds(start.start)));
            rows.stop.push(None);
            rows.machine.push(start.machine.clone());
            rows.system.push(Some(start.system.clone()));
            rows.propagated_from.push(None);
            rows.message.push(None);
            for (name, path) in &start.outputs {
                rows.outputs
                    .push((start.build.0, stepnr, name.clone(), path.clone()));
            }
            let row = RunRow::of(start, stepnr);
            self.staged.runs.insert(start.run, row);
            self.staged
                .acks
                .push((start.done.clone(), StartAck::Written));
        }
        Ok(())
    }

    /// A build has one row that says into what a step was resolved, however often that is tried. `false`: it is there.
    fn insert_resolved(
        &mut self,
        start: &StartStep,
        from: &str,
        stepnr: i32,
    ) -> Result<bool, Failure> {
        let into = base_name(&start.drv);
        let inserted = self.tx.execute(
            include_str!("../../sql/queue/insert_resolved_step.sql"),
            &[
                &start.build.0,
                &stepnr,
                &from,
                &seconds(start.start),
                &start.system,
                &into,
            ],
        )?;
        Ok(inserted > 0)
    }

    fn collect_propagated(
        &mut self,
        group: &[Entry],
        builds: &Builds,
        rows: &mut StepRows,
    ) -> Result<(), Failure> {
        for entry in group {
            match &entry.body {
                Body::Record(Record::Fail(fail)) => {
                    let wanted: Vec<BuildId> = fail
                        .builds
                        .iter()
                        .filter(|build| build.step_row && builds.free.contains(&build.id))
                        .map(|build| build.id)
                        .collect();
                    if wanted.is_empty() {
                        continue;
                    }
                    let run = fail.run.and_then(|run| self.run(run)).cloned();
                    let origin = self.failure_origin(fail, run.as_ref())?;
                    let start =
                        (fail.step_status == BuildStatus::Unsupported).then(|| seconds(fail.start));
                    let row = FinishedRow {
                        kind: STEP_BUILD,
                        drv: &fail.drv,
                        status: fail.step_status,
                        times: start.map(|start| (start, seconds(fail.stop))),
                        machine: fail
                            .machine
                            .map(|id| (self.writer.around.machine_name)(id))
                            .unwrap_or_default(),
                        system: run.as_ref().map(|run| run.system.clone()),
                        outputs: run.map(|run| run.outputs).unwrap_or_default(),
                        message: message(fail.message.as_deref()),
                        origin,
                        primary: fail.primary,
                    };
                    self.push_finished(rows, &wanted, &row)?;
                }
                Body::Record(Record::Abort {
                    builds: aborted,
                    drv,
                    message: text,
                    at,
                }) => {
                    let wanted: Vec<BuildId> = aborted
                        .iter()
                        .copied()
                        .filter(|id| builds.free.contains(id))
                        .collect();
                    let row = FinishedRow {
                        kind: STEP_BUILD,
                        drv,
                        status: BuildStatus::Aborted,
                        times: Some((seconds(*at), seconds(*at))),
                        machine: String::new(),
                        system: None,
                        outputs: Vec::new(),
                        message: message(Some(text)),
                        origin: None,
                        primary: BuildId(0),
                    };
                    self.push_finished(rows, &wanted, &row)?;
                }
                _ => {}
            }
        }
        Ok(())
    }

    /// One finished row an output, as Hydra writes them.
    fn collect_substituted(
        &mut self,
        group: &[Entry],
        builds: &Builds,
        rows: &mut StepRows,
    ) -> Result<(), Failure> {
        for entry in group {
            let Body::Record(Record::Substitute {
                build,
                drv,
                outputs,
            }) = &entry.body
            else {
                continue;
            };
            if builds.unstartable.contains(build) {
                continue;
            }
            // Perhaps an earlier attempt to write them was committed after all.
            let paths: Vec<&str> = outputs.iter().map(|output| &*output.path).collect();
            let written = self.tx.query(
                include_str!("../../sql/queue/select_substitutions.sql"),
                &[&build.0, &&**drv, &paths],
            )?;
            let written: HashSet<(String, Option<i32>)> =
                written.iter().map(|row| (row.get(0), row.get(1))).collect();
            for output in outputs {
                if written.contains(&(output.path.clone(), Some(seconds(output.start)))) {
                    continue;
                }
                let row = FinishedRow {
                    kind: STEP_SUBSTITUTION,
                    drv,
                    status: BuildStatus::Succeeded,
                    times: Some((seconds(output.start), seconds(output.stop))),
                    machine: String::new(),
                    system: None,
                    outputs: vec![(SUBSTITUTED_NAME.to_owned(), Some(output.path.clone()))],
                    message: None,
                    origin: None,
                    primary: *build,
                };
                self.push_finished(rows, &[*build], &row)?;
            }
        }
        Ok(())
    }

    fn push_finished(
        &mut self,
        rows: &mut StepRows,
        builds: &[BuildId],
        row: &FinishedRow,
    ) -> Result<(), Failure> {
        self.reseed(builds)?;
        for &build in builds {
            let Some(stepnr) = self.next_stepnr(build) else {
                continue;
            };
            rows.build.push(build.0);
            rows.stepnr.push(stepnr);
            rows.kind.push(row.kind);
            rows.drv.push(row.drv.to_owned());
            rows.busy.push(0);
            rows.status.push(Some(row.status.code()));
            rows.start.push(row.times.map(|times| times.0));
            rows.stop.push(row.times.map(|times| times.1));
            rows.machine.push(row.machine.clone());
            rows.system.push(row.system.clone());
            rows.propagated_from.push(
                row.origin
                    .filter(|_| build != row.primary || row.times.is_none())
                    .map(|id| id.0),
            );
            rows.message.push(row.message.clone());
            for (name, path) in &row.outputs {
                rows.outputs
                    .push((build.0, stepnr, name.clone(), path.clone()));
            }
        }
        Ok(())
    }

    /// The build that owns the failed step's row: the primary of a run that failed now, the newest known
    /// failure for a cached one.
    fn failure_origin(
        &mut self,
        fail: &Fail,
        run: Option<&RunRow>,
    ) -> Result<Option<BuildId>, Failure> {
        match fail.step_status {
            BuildStatus::CachedFailure => {
                let paths: Vec<&str> = run
                    .iter()
                    .flat_map(|run| &run.outputs)
                    .filter_map(|(_, path)| path.as_deref())
                    .collect();
                let rows = self.tx.query(
                    include_str!("../../sql/queue/select_failure_origin.sql"),
                    &[&&*fail.drv, &paths],
                )?;
                Ok(rows
                    .first()
                    .and_then(|row| row.get::<_, Option<i32>>(0))
                    .map(BuildId))
            }
            BuildStatus::Unsupported => Ok(None),
            _ => Ok(Some(fail.primary)),
        }
    }

    fn run(&self, run: RunId) -> Option<&RunRow> {
        self.staged
            .runs
            .get(&run)
            .or_else(|| self.writer.runs.get(&run))
    }

    fn next_stepnr(&mut self, build: BuildId) -> Option<i32> {
        if self.staged.gone.contains(&build) {
            return None;
        }
        let last = *self
            .staged
            .counters
            .get(&build)
            .or_else(|| self.writer.counters.get(&build))?;
        self.staged.counters.insert(build, last + 1);
        Some(last + 1)
    }

    /// Makes sure that the counters of these builds are known, as far as the builds exist.
    fn reseed(&mut self, builds: &[BuildId]) -> Result<(), Failure> {
        let known = |id: &BuildId| {
            self.staged.counters.contains_key(id)
                || self.writer.counters.contains_key(id)
                || self.staged.gone.contains(id)
        };
        let unknown: Vec<BuildId> = builds.iter().copied().filter(|id| !known(id)).collect();
        self.read_counters(&unknown)
    }

    /// Reads the last step number of these builds; one that is not there is gone.
    fn read_counters(&mut self, builds: &[BuildId]) -> Result<(), Failure> {
        if builds.is_empty() {
            return Ok(());
        }
        let ids: Vec<i32> = builds.iter().map(|id| id.0).collect();
        self.staged.gone.extend(builds);
        for row in self.tx.query(
            include_str!("../../sql/queue/select_last_stepnrs.sql"),
            &[&ids],
        )? {
            let id = BuildId(row.get(0));
            self.staged.gone.remove(&id);
            self.staged.counters.insert(id, row.get(1));
        }
        Ok(())
    }

    fn update_phases(&mut self, group: &[Entry]) -> Result<(), Failure> {
        let (mut build, mut stepnr, mut busy) = (Vec::new(), Vec::new(), Vec::new());
        for entry in group {
            let Body::Record(Record::Phase { run, phase }) = &entry.body else {
                continue;
            };
            let Some(row) = self.run(*run) else { continue };
            build.push(row.build.0);
            stepnr.push(row.stepnr);
            busy.push(phase.code());
        }
        if !build.is_empty() {
            self.tx.execute(
                include_str!("../../sql/queue/update_step_phases.sql"),
                &[&build, &stepnr, &busy],
            )?;
        }
        Ok(())
    }

    /// Ends the rows of runs; gives those that were still busy.
    fn finish_steps(&mut self, group: &[Entry]) -> Result<HashSet<(i32, i32)>, Failure> {
        let ended: Vec<(&FinishStep, RunRow)> = group
            .iter()
            .filter_map(|entry| match &entry.body {
                Body::Record(Record::FinishStep(finish)) => {
                    Some((finish, self.run(finish.run)?.clone()))
                }
                _ => None,
            })
            .collect();
        let mut finished = self.adopt_steps(group)?;
        if ended.is_empty() {
            return Ok(finished);
        }
        let end = EndColumns::of(ended.iter().map(|(finish, row)| (*finish, row)));
        let rows = self.tx.query(
            include_str!("../../sql/queue/finish_steps.sql"),
            &[
                &end.build,
                &end.stepnr,
                &end.status,
                &end.message,
                &end.start,
                &end.stop,
                &end.overhead,
                &end.times_built,
                &end.non_deterministic,
            ],
        )?;
        self.staged
            .ended
            .extend(ended.iter().map(|(finish, _)| finish.run));
        self.fill_step_outputs(&ended)?;
        self.insert_failed_paths(&ended)?;
        finished.extend(
            rows.iter()
                .map(|row| (row.get::<_, i32>(0), row.get::<_, i32>(1))),
        );
        Ok(finished)
    }

    fn adopt_steps(&mut self, group: &[Entry]) -> Result<HashSet<(i32, i32)>, Failure> {
        let mut adopted = HashSet::new();
        for entry in group {
            match &entry.body {
                Body::Adopt(adoption) => {
                    let changed = self.tx.execute(
                        include_str!("../../sql/queue/adopt_step.sql"),
                        &[&adoption.build.0, &adoption.stepnr, &seconds(adoption.stop)],
                    )?;
                    if changed > 0 {
                        adopted.insert((adoption.build.0, adoption.stepnr));
                    }
                }
                Body::Abandon { build, stepnr } => {
                    self.tx.execute(
                        include_str!("../../sql/queue/abort_left_steps.sql"),
                        &[&vec![build.0], &vec![*stepnr]],
                    )?;
                }
                _ => {}
            }
        }
        Ok(adopted)
    }

    fn fill_step_outputs(&mut self, ended: &[(&FinishStep, RunRow)]) -> Result<(), Failure> {
        let (mut build, mut stepnr, mut name, mut path) =
            (Vec::new(), Vec::new(), Vec::new(), Vec::new());
        for (finish, row) in ended {
            let Some(output) = &finish.output else {
                continue;
            };
            let open = row.outputs.iter().filter(|(_, path)| path.is_none());
            for (output_name, _) in open {
                if let Some((_, known)) = output.outputs.iter().find(|(n, _)| n == output_name) {
                    build.push(row.build.0);
                    stepnr.push(row.stepnr);
                    name.push(output_name.as_str());
                    path.push(known.as_str());
                }
            }
        }
        if !build.is_empty() {
            self.tx.execute(
                include_str!("../../sql/queue/fill_step_outputs.sql"),
                &[&build, &stepnr, &name, &path],
            )?;
        }
        Ok(())
    }

    fn insert_failed_paths(&mut self, ended: &[(&FinishStep, RunRow)]) -> Result<(), Failure> {
        let paths: Vec<&str> = ended
            .iter()
            .filter(|(finish, _)| finish.cache_failure)
            .flat_map(|(_, row)| row.outputs.iter().filter_map(|(_, path)| path.as_deref()))
            .collect();
        if !paths.is_empty() {
            self.tx.execute(
                include_str!("../../sql/queue/insert_failed_paths.sql"),
                &[&paths],
            )?;
        }
        Ok(())
    }

    fn finish_builds(&mut self, group: &[Entry], builds: &Builds) -> Result<(), Failure> {
        let mut done: Vec<(BuildId, bool, &Succeed)> = group
            .iter()
            .filter_map(|entry| entry.body.succeed())
            .flat_map(|succeed| {
                succeed
                    .builds
                    .iter()
                    .map(move |(id, cached)| (*id, *cached, succeed))
            })
            .filter(|(id, ..)| builds.free.contains(id))
            .collect();
        if done.is_empty() {
            return Ok(());
        }
        done.sort_by_key(|(id, ..)| *id);
        done.dedup_by_key(|(id, ..)| *id);
        let success = SuccessColumns::of(&done);
        self.tx.execute(
            include_str!("../../sql/queue/succeed_builds.sql"),
            &[
                &success.id,
                &success.status,
                &success.start,
                &success.stop,
                &success.size,
                &success.closure_size,
                &success.cached,
                &success.release,
            ],
        )?;
        self.staged.finished.extend(done.iter().map(|(id, ..)| *id));
        self.write_outputs(&done)?;
        self.write_products(&success.id, &done)?;
        self.write_metrics(&success.id, &done)
    }

    fn write_outputs(&mut self, done: &[(BuildId, bool, &Succeed)]) -> Result<(), Failure> {
        let (mut build, mut name, mut path) = (Vec::new(), Vec::new(), Vec::new());
        for (id, _, succeed) in done {
            for (output_name, output_path) in &succeed.output.outputs {
                build.push(id.0);
                name.push(output_name.as_str());
                path.push(output_path.as_str());
            }
        }
        self.tx.execute(
            include_str!("../../sql/queue/fill_build_outputs.sql"),
            &[&build, &name, &path],
        )?;
        Ok(())
    }

    fn write_products(
        &mut self,
        ids: &[i32],
        done: &[(BuildId, bool, &Succeed)],
    ) -> Result<(), Failure> {
        self.tx
            .execute(include_str!("../../sql/queue/delete_products.sql"), &[&ids])?;
        let rows: Vec<(i32, i32, &crate::model::BuildProduct)> = done
            .iter()
            .flat_map(|(id, _, succeed)| {
                succeed
                    .output
                    .products
                    .iter()
                    .zip(1i32..)
                    .map(move |(product, nr)| (id.0, nr, product))
            })
            .collect();
        if rows.is_empty() {
            return Ok(());
        }
        let build: Vec<i32> = rows.iter().map(|row| row.0).collect();
        let nr: Vec<i32> = rows.iter().map(|row| row.1).collect();
        let kind: Vec<&str> = rows.iter().map(|row| row.2.kind.as_str()).collect();
        let subtype: Vec<&str> = rows.iter().map(|row| row.2.subtype.as_str()).collect();
        let size: Vec<Option<i64>> = rows.iter().map(|row| row.2.file_size.map(bytes)).collect();
        let sha256: Vec<Option<&str>> = rows.iter().map(|row| row.2.sha256.as_deref()).collect();
        let path: Vec<&str> = rows.iter().map(|row| row.2.path.as_str()).collect();
        let name: Vec<&str> = rows.iter().map(|row| row.2.name.as_str()).collect();
        let default: Vec<&str> = rows.iter().map(|row| row.2.default_path.as_str()).collect();
        self.tx.execute(
            include_str!("../../sql/queue/insert_products.sql"),
            &[
                &build, &nr, &kind, &subtype, &size, &sha256, &path, &name, &default,
            ],
        )?;
        Ok(())
    }

    fn write_metrics(
        &mut self,
        ids: &[i32],
        done: &[(BuildId, bool, &Succeed)],
    ) -> Result<(), Failure> {
        self.tx
            .execute(include_str!("../../sql/queue/delete_metrics.sql"), &[&ids])?;
        let rows: Vec<(i32, &crate::model::BuildMetric)> = done
            .iter()
            .flat_map(|(id, _, succeed)| {
                succeed
                    .output
                    .metrics
                    .iter()
                    .map(move |metric| (id.0, metric))
            })
            .collect();
        if rows.is_empty() {
            return Ok(());
        }
        let build: Vec<i32> = rows.iter().map(|row| row.0).collect();
        let name: Vec<&str> = rows.iter().map(|row| row.1.name.as_str()).collect();
        let unit: Vec<Option<&str>> = rows.iter().map(|row| row.1.unit.as_deref()).collect();
        let value: Vec<f64> = rows.iter().map(|row| row.1.value).collect();
        self.tx.execute(
            include_str!("../../sql/queue/insert_metrics.sql"),
            &[&build, &name, &unit, &value],
        )?;
        Ok(())
    }

    fn fail_builds(&mut self, group: &[Entry], builds: &Builds) -> Result<(), Failure> {
        let mut rows = FailRows::default();
        for entry in group {
            match &entry.body {
                Body::Record(Record::Fail(fail)) => {
                    for build in fail
                        .builds
                        .iter()
                        .filter(|build| builds.free.contains(&build.id))
                    {
                        rows.push(build.id, build.status, fail.start, fail.stop, fail.cached);
                    }
                }
                Body::Record(Record::Abort {
                    builds: aborted,
                    at,
                    ..
                }) => {
                    for id in aborted.iter().filter(|id| builds.free.contains(id)) {
                        rows.push(*id, BuildStatus::Aborted, *at, *at, false);
                    }
                }
                _ => {}
            }
        }
        if !rows.id.is_empty() {
            self.staged
                .finished
                .extend(rows.id.iter().map(|id| BuildId(*id)));
            self.tx.execute(
                include_str!("../../sql/queue/fail_builds.sql"),
                &[
                    &rows.id,
                    &rows.status,
                    &rows.start,
                    &rows.stop,
                    &rows.cached,
                    &rows.pending,
                ],
            )?;
        }
        Ok(())
    }

    fn announce(&mut self, body: &Body, builds: &Builds, finished: &HashSet<(i32, i32)>) {
        match body {
            Body::StartStep(start) => {
                let Some(row) = self.staged.runs.get(&start.run) else {
                    return;
                };
                for build in &start.announce {
                    self.notify.push(("build_started", build.to_string()));
                }
                self.notify
                    .push(("step_started", payload::step_started(row.build, row.stepnr)));
            }
            Body::Record(Record::FinishStep(finish)) => {
                let Some(row) = self.run(finish.run) else {
                    return;
                };
                let (build, stepnr) = (row.build, row.stepnr);
                if !finished.contains(&(build.0, stepnr)) {
                    return;
                }
                let log = log_of(self.writer, finish, row);
                self.notify.push((
                    "step_finished",
                    payload::step_finished(build, stepnr, log.as_deref()),
                ));
            }
            Body::Record(Record::Succeed(succeed)) => self.announce_success(succeed, builds),
            Body::Adopt(adoption) => {
                if finished.contains(&(adoption.build.0, adoption.stepnr)) {
                    let payload = payload::step_finished(
                        adoption.build,
                        adoption.stepnr,
                        adoption.log.as_deref(),
                    );
                    self.notify.push(("step_finished", payload));
                }
                self.announce_success(&adoption.succeed, builds);
            }
            Body::Record(Record::Fail(fail)) => {
                let ended: Vec<BuildId> = fail
                    .builds
                    .iter()
                    .map(|build| build.id)
                    .filter(|id| builds.free.contains(id))
                    .collect();
                if !ended.is_empty() {
                    let payloads = payload::build_finished(fail.primary, &ended);
                    self.notify.extend(
                        payloads
                            .into_iter()
                            .map(|payload| ("build_finished", payload)),
                    );
                }
            }
            Body::Record(Record::Abort {
                builds: aborted, ..
            }) => {
                for id in aborted.iter().filter(|id| builds.free.contains(id)) {
                    self.notify.push(("build_finished", id.to_string()));
                }
            }
            Body::Record(Record::Phase { .. } | Record::Substitute { .. })
            | Body::Abandon { .. }
            | Body::Void => {}
        }
    }

    fn announce_success(&mut self, succeed: &Succeed, builds: &Builds) {
        for (id, _) in succeed
            .builds
            .iter()
            .filter(|(id, _)| builds.free.contains(id))
        {
            self.notify.push(("build_finished", id.to_string()));
        }
    }

    /// Starts of builds that somebody else holds are written later, and what belongs to them with them.
    fn postpone_starts(&mut self, group: &[Entry], builds: &Builds) {
        if builds.unstartable.is_empty() {
            return;
        }
        let mut runs = HashSet::new();
        for entry in group {
            let body = match &entry.body {
                Body::StartStep(start) if builds.unstartable.contains(&start.build) => {
                    runs.insert(start.run);
                    Body::StartStep(start.clone())
                }
                Body::Record(record @ Record::Substitute { build, .. })
                    if builds.unstartable.contains(build) =>
                {
                    Body::Record(record.clone())
                }
                Body::Record(record) if is_of(&entry.body, &runs) => Body::Record(record.clone()),
                _ => continue,
            };
            self.staged.done.retain(|ticket| *ticket != entry.ticket);
            self.staged.deferred.push(Entry {
                ticket: entry.ticket,
                body,
            });
        }
    }

    /// Records of builds that somebody else holds are written later, for those builds alone.
    fn postpone_held(&mut self, group: &[Entry], builds: &Builds) {
        self.postpone_starts(group, builds);
        if builds.held.is_empty() {
            return;
        }
        let held = |id: &BuildId| builds.held.contains(id);
        for entry in group {
            if !self.staged.done.contains(&entry.ticket) {
                // Postponed as a whole already.
                continue;
            }
            let held_success = entry
                .body
                .succeed()
                .filter(|s| s.builds.iter().any(|(id, _)| held(id)));
            let rest = match &entry.body {
                _ if held_success.is_some() => {
                    let mut rest = held_success
                        .cloned()
                        .unwrap_or_else(|| unreachable!("BUG: just seen"));
                    rest.builds.retain(|(id, _)| held(id));
                    Record::Succeed(rest)
                }
                Body::Record(Record::Fail(fail))
                    if fail.builds.iter().any(|build| held(&build.id)) =>
                {
                    let mut rest = fail.clone();
                    rest.builds.retain(|build| held(&build.id));
                    Record::Fail(rest)
                }
                Body::Record(Record::Abort {
                    builds: aborted,
                    drv,
                    message,
                    at,
                }) if aborted.iter().any(held) => Record::Abort {
                    builds: aborted.iter().copied().filter(held).collect(),
                    drv: drv.clone(),
                    message: message.clone(),
                    at: *at,
                },
                _ => continue,
            };
            self.staged.done.retain(|ticket| *ticket != entry.ticket);
            self.staged.deferred.push(Entry {
                ticket: entry.ticket,
                body: Body::Record(rest),
            });
        }
    }
}

/// Which builds of a group can be finished now.
#[derive(Default)]
struct Builds {
    free: HashSet<BuildId>,
    held: HashSet<BuildId>,
    /// For which no busy row can be inserted now.
    unstartable: HashSet<BuildId>,
}

/// A step row that is finished when it is made.
struct FinishedRow<'a> {
    kind: i32,
    drv: &'a str,
    status: BuildStatus,
    times: Option<(i32, i32)>,
    machine: String,
    system: Option<String>,
    outputs: Vec<(String, Option<String>)>,
    message: Option<String>,
    origin: Option<BuildId>,
    primary: BuildId,
}

impl FailRows {
    fn push(
        &mut self,
        id: BuildId,
        status: BuildStatus,
        start: UnixSecs,
        stop: UnixSecs,
        cached: bool,
    ) {
        if !self.seen.insert(id) {
            return;
        }
        self.id.push(id.0);
        self.status.push(status.code());
        self.start.push(nonzero_seconds(start));
        self.stop.push(nonzero_seconds(stop));
        self.cached.push(i32::from(cached));
        self.pending.push(Some(nonzero_seconds(stop)));
    }
}

/// Where the log of an ended run is, if it has one.
fn log_of(writer: &Writer, finish: &FinishStep, row: &RunRow) -> Option<String> {
    finish
        .has_log
        .then(|| (writer.around.log_path)(finish.run, &row.drv, finish.keep_attempt_log))
}

/// What a build says whose top-level step succeeded.
fn success_status(output: &BuildOutput) -> BuildStatus {
    if output.failed {
        BuildStatus::FailedWithOutput
    } else {
        BuildStatus::Succeeded
    }
}

/// A message fit for a column: no control characters (PostgreSQL refuses NUL), not endless.
fn message(text: Option<&str>) -> Option<String> {
    let text = text::clip(text::plain(text?).trim(), MESSAGE_BYTES_MAX);
    (!text.is_empty()).then_some(text)
}

/// Hydra's integer columns end in 2038.
fn seconds(time: UnixSecs) -> i32 {
    i32::try_from(time.max(0)).unwrap_or(i32::MAX)
}

/// Finished builds must have times that are not 0.
fn nonzero_seconds(time: UnixSecs) -> i32 {
    seconds(time).max(1)
}

fn bytes(size: u64) -> i64 {
    i64::try_from(size).unwrap_or(i64::MAX)
}

fn positive(value: u32) -> Option<i32> {
    (value > 0).then(|| i32::try_from(value).unwrap_or(i32::MAX))
}
