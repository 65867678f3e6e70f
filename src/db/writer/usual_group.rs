//! Groups of records that one statement writes: starts of attempts, or phases and ends of attempts and successes, as a
//! busy farm makes them all the time. One round trip instead of ten, and the transaction is over when the answer is there.
//!
//! Knows which records are usual, and what of them was not written after all (a build's row that somebody holds, a step
//! number taken meanwhile); the writer's single statements see to that.

use std::collections::{HashMap, HashSet};

use super::{
    bytes, durability, log_of, message, nonzero_seconds, note_maybe_written, positive, seconds,
    success_status, Body, Entry, Failure, RunRow, Staged, StartAck, StartStep, Writer,
    CONNECTION_MAX, LOCK_TIMEOUT,
};
use crate::db::payload;
use crate::db::pool::Conn;
use crate::db::DbError;
use crate::model::{BuildId, Phase, RunId};
use crate::plan::action::{FinishStep, Record, Succeed};

/// What is staged is committed; the entries at these places of the group are not written.
pub(super) type Written = (Staged, Vec<usize>);

/// A group taken apart.
pub(super) enum Split {
    /// Each part can be written by one statement; the ends come first, since a start may follow from an end and an end
    /// never from a start beside it.
    Usual {
        ends: Vec<Entry>,
        starts: Vec<Entry>,
    },
    /// There is something in it that needs more.
    Other(Vec<Entry>),
}

/// Takes a group apart, if all of it is usual.
pub(super) fn split(group: Vec<Entry>, writer: &Writer) -> Split {
    let mut started: HashSet<RunId> = HashSet::new();
    let mut steps: HashSet<(BuildId, &str)> = HashSet::new();
    let mut succeeded: HashSet<BuildId> = HashSet::new();
    let is_usual = group.iter().all(|entry| match &entry.body {
        Body::Void | Body::Record(Record::Phase { .. }) => true,
        Body::StartStep(start) => {
            started.insert(start.run);
            !start.maybe_written
                && start.resolved_from.is_none()
                && steps.insert((start.build, &start.drv))
        }
        Body::Record(Record::FinishStep(finish)) => {
            let row = writer.runs.get(&finish.run);
            !finish.keep_attempt_log
                && !finish.cache_failure
                && !started.contains(&finish.run)
                && row.is_none_or(|row| row.outputs.iter().all(|(_, path)| path.is_some()))
        }
        Body::Record(Record::Succeed(succeed)) => {
            succeed.output.products.is_empty()
                && succeed.output.metrics.is_empty()
                && succeed.builds.iter().all(|(id, _)| succeeded.insert(*id))
        }
        _ => false,
    });
    if !is_usual {
        return Split::Other(group);
    }
    let (starts, ends) = group.into_iter().partition(|entry| match &entry.body {
        Body::StartStep(_) => true,
        Body::Record(Record::Phase { run, .. }) => started.contains(run),
        _ => false,
    });
    Split::Usual { ends, starts }
}

/// Writes starts and their phases, as far as possible.
pub(super) fn write_starts(writer: &Writer, group: &mut [Entry]) -> Result<Written, Failure> {
    let written = Starts::of(group).write(writer);
    match written {
        Ok(given) => Ok(Starts::of(group).came_of_it(group, &given)),
        Err(error) => {
            if matches!(error, Failure::Away(_)) {
                note_maybe_written(group);
            }
            Err(error)
        }
    }
}

/// Runs of a statement after which PostgreSQL keeps one plan for it, instead of making one each time for longer than the
/// statement works.
const RUNS_UNTIL_PLANNED: usize = 6;

/// Makes a connection ready to write a start at once: the statements are prepared, planned, and have been run, on
/// nothing. Otherwise the first builds after a quiet time wait for it, several times as long as they need.
///
/// # Errors
/// Of the database.
pub fn rehearse(conn: &mut Conn) -> Result<(), DbError> {
    // No session has this number, so that our lock is not held for these statements and they change nothing.
    let (pid, class, object) = (0i32, 0i64, 0i64);
    let (ints, texts) = (Vec::<i32>::new(), Vec::<&str>::new());
    let (sizes, flags) = (Vec::<i64>::new(), Vec::<bool>::new());
    for _ in 0..RUNS_UNTIL_PLANNED {
        conn.query(
            include_str!("../../../sql/queue/write_starts.sql"),
            &[
                &pid,
                &class,
                &object,
                &LOCK_TIMEOUT,
                &ints,
                &ints,
                &ints,
                &texts,
                &ints,
                &ints,
                &texts,
                &texts,
                &ints,
                &texts,
                &texts,
                &texts,
                &texts,
                &texts,
                &ints,
                &texts,
            ],
        )?;
    }
    conn.query(
        include_str!("../../../sql/queue/write_ends.sql"),
        &[
            &pid,
            &class,
            &object,
            &LOCK_TIMEOUT,
            &"on",
            &ints,
            &ints,
            &ints,
            &ints,
            &ints,
            &ints,
            &texts,
            &ints,
            &ints,
            &ints,
            &ints,
            &flags,
            &ints,
            &ints,
            &ints,
            &ints,
            &sizes,
            &sizes,
            &ints,
            &texts,
            &ints,
            &texts,
            &texts,
            &texts,
            &texts,
            &ints,
            &ints,
        ],
    )?;
    Ok(())
}

/// Starts, with the phases they have reached, and their notifications by column.
#[derive(Default)]
struct Starts<'a> {
    starts: Vec<(&'a StartStep, Phase)>,
    channel: Vec<&'static str>,
    payload: Vec<Option<String>>,
    build: Vec<i32>,
    drv: Vec<&'a str>,
    /// Which of the notifications says that a run's step has started.
    notification: HashMap<RunId, usize>,
}

impl<'a> Starts<'a> {
    fn of(group: &'a [Entry]) -> Starts<'a> {
        let mut all = Starts::default();
        let mut places: HashMap<RunId, usize> = HashMap::new();
        for entry in group {
            match &entry.body {
                Body::StartStep(start) => {
                    places.insert(start.run, all.starts.len());
                    all.starts.push((start, Phase::Preparing));
                    for build in &start.announce {
                        all.notify("build_started", Some(build.to_string()), start);
                    }
                    all.notification.insert(start.run, all.channel.len());
                    all.notify("step_started", None, start);
                }
                Body::Record(Record::Phase { run, phase }) => {
                    if let Some(place) = places.get(run) {
                        all.starts[*place].1 = *phase;
                    }
                }
                _ => {}
            }
        }
        all
    }

    fn notify(&mut self, channel: &'static str, payload: Option<String>, start: &'a StartStep) {
        self.channel.push(channel);
        self.payload.push(payload);
        self.build.push(start.build.0);
        self.drv.push(&start.drv);
    }

    /// The numbers that steps were given, by notification.
    fn write(&self, writer: &Writer) -> Result<HashMap<usize, i32>, Failure> {
        let mut nth_of: HashMap<BuildId, i32> = HashMap::new();
        let nth: Vec<i32> = self
            .starts
            .iter()
            .map(|(start, _)| {
                let nth = nth_of.entry(start.build).or_default();
                *nth += 1;
                *nth
            })
            .collect();
        let text = |column: fn(&StartStep) -> &str| -> Vec<&str> {
            self.starts.iter().map(|(start, _)| column(start)).collect()
        };
        let build: Vec<i32> = self.starts.iter().map(|(s, _)| s.build.0).collect();
        let last: Vec<Option<i32>> = self
            .starts
            .iter()
            .map(|(start, _)| writer.counters.get(&start.build).copied())
            .collect();
        let busy: Vec<i32> = self.starts.iter().map(|(_, phase)| phase.code()).collect();
        let time: Vec<i32> = self.starts.iter().map(|(s, _)| seconds(s.start)).collect();
        let outputs = || {
            self.starts
                .iter()
                .flat_map(|(start, _)| start.outputs.iter().map(move |output| (*start, output)))
        };
        let output_build: Vec<i32> = outputs().map(|(s, _)| s.build.0).collect();
        let output_drv: Vec<&str> = outputs().map(|(s, _)| s.drv.as_str()).collect();
        let output_name: Vec<&str> = outputs().map(|(_, o)| o.0.as_str()).collect();
        let output_path: Vec<Option<&str>> = outputs().map(|(_, o)| o.1.as_deref()).collect();

        let proof = writer.proof()?;
        let mut conn = writer.around.pool.get(CONNECTION_MAX)?;
        let rows = conn.query(
            include_str!("../../../sql/queue/write_starts.sql"),
            &[
                &proof.backend_pid,
                &proof.class,
                &proof.object,
                &LOCK_TIMEOUT,
                &build,
                &last,
                &nth,
                &text(|start| &start.drv),
                &busy,
                &time,
                &text(|start| &start.machine),
                &text(|start| &start.system),
                &output_build,
                &output_drv,
                &output_name,
                &output_path,
                &self.channel,
                &self.payload,
                &self.build,
                &self.drv,
            ],
        )?;
        let mut held = false;
        let mut given = HashMap::new();
        for row in &rows {
            match notification(row) {
                None => held = row.get(2),
                Some(n) => {
                    given.insert(n, row.get(1));
                }
            }
        }
        if held {
            Ok(given)
        } else {
            Err(writer.lock_lost(proof))
        }
    }

    /// Compares what was to be written with what was.
    fn came_of_it(&self, group: &[Entry], given: &HashMap<usize, i32>) -> Written {
        let mut staged = Staged::default();
        let mut left = Vec::new();
        let number = |run: &RunId| given.get(self.notification.get(run)?).copied();
        for (place, entry) in group.iter().enumerate() {
            match &entry.body {
                Body::StartStep(start) => {
                    let Some(stepnr) = number(&start.run) else {
                        left.push(place);
                        continue;
                    };
                    let counter = staged.counters.entry(start.build).or_insert(stepnr);
                    *counter = (*counter).max(stepnr);
                    staged.runs.insert(start.run, RunRow::of(start, stepnr));
                    staged.acks.push((start.done.clone(), StartAck::Written));
                }
                // It waits behind its start.
                Body::Record(Record::Phase { run, .. }) if number(run).is_none() => {
                    left.push(place);
                    continue;
                }
                _ => {}
            }
            staged.done.push(entry.ticket);
        }
        (staged, left)
    }
}

/// The place of a sent notification in the arrays; `None` in the row about our lock.
fn notification(row: &postgres::Row) -> Option<usize> {
    usize::try_from(row.get::<_, i64>(0)).ok()?.checked_sub(1)
}

/// Writes phases, ends and successes, as far as possible.
pub(super) fn write_ends(writer: &Writer, group: &[Entry]) -> Result<Written, Failure> {
    let mut phases: Vec<(&RunRow, Phase)> = Vec::new();
    let mut ends: Vec<(&FinishStep, &RunRow)> = Vec::new();
    let mut successes: Vec<(BuildId, bool, &Succeed)> = Vec::new();
    let (mut channel, mut payloads) = (Vec::new(), Vec::new());
    let (mut of_build, mut of_step) = (Vec::new(), Vec::new());
    let mut announced: HashMap<BuildId, usize> = HashMap::new();
    for entry in group {
        match &entry.body {
            Body::Record(Record::Phase { run, phase }) => {
                phases.extend(writer.runs.get(run).map(|row| (row, *phase)));
            }
            Body::Record(Record::FinishStep(finish)) => {
                // One without a row ends nothing.
                let Some(row) = writer.runs.get(&finish.run) else {
                    continue;
                };
                ends.push((finish, row));
                let log = log_of(writer, finish, row);
                channel.push("step_finished");
                payloads.push(payload::step_finished(
                    row.build,
                    row.stepnr,
                    log.as_deref(),
                ));
                of_build.push(row.build.0);
                of_step.push(Some(row.stepnr));
            }
            Body::Record(Record::Succeed(succeed)) => {
                for (id, cached) in &succeed.builds {
                    successes.push((*id, *cached, succeed));
                    announced.insert(*id, channel.len());
                    channel.push("build_finished");
                    payloads.push(id.to_string());
                    of_build.push(id.0);
                    of_step.push(None);
                }
            }
            _ => {}
        }
    }
    let is_nothing = phases.is_empty() && ends.is_empty() && successes.is_empty();
    let sent = if is_nothing {
        HashSet::new()
    } else {
        let phase_build: Vec<i32> = phases.iter().map(|(row, _)| row.build.0).collect();
        let phase_stepnr: Vec<i32> = phases.iter().map(|(row, _)| row.stepnr).collect();
        let phase_busy: Vec<i32> = phases.iter().map(|(_, phase)| phase.code()).collect();
        let end = EndColumns::of(ends.iter().copied());
        let success = SuccessColumns::of(&successes);
        let outputs = || {
            successes
                .iter()
                .flat_map(|(id, _, s)| s.output.outputs.iter().map(move |output| (id.0, output)))
        };
        let output_build: Vec<i32> = outputs().map(|(id, _)| id).collect();
        let output_name: Vec<&str> = outputs().map(|(_, o)| o.0.as_str()).collect();
        let output_path: Vec<&str> = outputs().map(|(_, o)| o.1.as_str()).collect();
        let proof = writer.proof()?;
        let mut conn = writer.around.pool.get(CONNECTION_MAX)?;
        let rows = conn.query(
            include_str!("../../../sql/queue/write_ends.sql"),
            &[
                &proof.backend_pid,
                &proof.class,
                &proof.object,
                &LOCK_TIMEOUT,
                &durability(group),
                &phase_build,
                &phase_stepnr,
                &phase_busy,
                &end.build,
                &end.stepnr,
                &end.status,
                &end.message,
                &end.start,
                &end.stop,
                &end.overhead,
                &end.times_built,
                &end.non_deterministic,
                &success.id,
                &success.status,
                &success.start,
                &success.stop,
                &success.size,
                &success.closure_size,
                &success.cached,
                &success.release,
                &output_build,
                &output_name,
                &output_path,
                &channel,
                &payloads,
                &of_build,
                &of_step,
            ],
        )?;
        let is_held = |row: &postgres::Row| notification(row).is_none() && row.get(1);
        if !rows.iter().any(is_held) {
            return Err(writer.lock_lost(proof));
        }
        rows.iter().filter_map(notification).collect()
    };
    let mut staged = Staged::default();
    let mut left = Vec::new();
    for (place, entry) in group.iter().enumerate() {
        match &entry.body {
            // A row that was not busy any more needs no end.
            Body::Record(Record::FinishStep(finish)) => staged.ended.push(finish.run),
            Body::Record(Record::Succeed(succeed)) => {
                let is_finished =
                    |id: &BuildId| announced.get(id).is_some_and(|n| sent.contains(n));
                if !succeed.builds.iter().all(|(id, _)| is_finished(id)) {
                    left.push(place);
                    continue;
                }
                staged
                    .finished
                    .extend(succeed.builds.iter().map(|(id, _)| *id));
            }
            _ => {}
        }
        staged.done.push(entry.ticket);
    }
    Ok((staged, left))
}

/// Ends of steps, by column.
pub(super) struct EndColumns {
    pub build: Vec<i32>,
    pub stepnr: Vec<i32>,
    pub status: Vec<i32>,
    pub message: Vec<Option<String>>,
    pub start: Vec<i32>,
    pub stop: Vec<i32>,
    pub overhead: Vec<Option<i32>>,
    pub times_built: Vec<Option<i32>>,
    pub non_deterministic: Vec<Option<bool>>,
}

impl EndColumns {
    pub fn of<'a>(ends: impl Iterator<Item = (&'a FinishStep, &'a RunRow)> + Clone) -> EndColumns {
        let finishes = || ends.clone().map(|(finish, _)| finish);
        EndColumns {
            build: ends.clone().map(|(_, row)| row.build.0).collect(),
            stepnr: ends.clone().map(|(_, row)| row.stepnr).collect(),
            status: finishes().map(|f| f.status.code()).collect(),
            message: finishes().map(|f| message(f.message.as_deref())).collect(),
            start: finishes().map(|f| seconds(f.start)).collect(),
            stop: finishes().map(|f| seconds(f.stop)).collect(),
            overhead: finishes().map(|f| positive(f.overhead_ms)).collect(),
            times_built: finishes().map(|f| positive(f.times_built)).collect(),
            non_deterministic: finishes()
                .map(|f| (f.times_built > 1).then_some(f.non_deterministic))
                .collect(),
        }
    }
}

/// Successes of builds, by column.
pub(super) struct SuccessColumns<'a> {
    pub id: Vec<i32>,
    pub status: Vec<i32>,
    pub start: Vec<i32>,
    pub stop: Vec<i32>,
    pub size: Vec<i64>,
    pub closure_size: Vec<i64>,
    pub cached: Vec<i32>,
    pub release: Vec<Option<&'a str>>,
}

impl<'a> SuccessColumns<'a> {
    pub fn of(done: &[(BuildId, bool, &'a Succeed)]) -> SuccessColumns<'a> {
        let all = || done.iter().map(|(_, _, succeed)| *succeed);
        SuccessColumns {
            id: done.iter().map(|(id, ..)| id.0).collect(),
            status: all().map(|s| success_status(&s.output).code()).collect(),
            start: all().map(|s| nonzero_seconds(s.start)).collect(),
            stop: all().map(|s| nonzero_seconds(s.stop)).collect(),
            size: all().map(|s| bytes(s.output.size)).collect(),
            closure_size: all().map(|s| bytes(s.output.closure_size)).collect(),
            cached: done
                .iter()
                .map(|(_, cached, _)| i32::from(*cached))
                .collect(),
            release: all().map(|s| s.output.release_name.as_deref()).collect(),
        }
    }
}
