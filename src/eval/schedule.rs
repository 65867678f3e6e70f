//! When which jobset is evaluated: every decision of the evaluator's service.
//!
//! Pure, as the queue runner's plan: `turn(now, events) -> actions`. It reads no clock and no table, starts nothing and never
//! fails; whoever drives it (`service`) carries the actions out and tells what became of them.
//!
//! The rules are those of Hydra's evaluator, in its order: a jobset that was triggered is due, whatever else holds; one without
//! a check interval only then; else it is due when its interval has passed since it was last checked, and one of those that are
//! evaluated one at a time only while no build of its newest evaluation is unfinished. Those triggered first come first, then
//! those not checked for the longest time. Added: memory, a pause that grows with failures in a row, a time limit, and that
//! whoever has been due for an hour counts as triggered then, so that triggers of others cannot starve it.
//!
//! What is being evaluated is never forgotten before it has ended and its end is recorded, whatever becomes of its row.

use std::collections::BTreeMap;
use std::fmt::Write;

use crate::base::text::{bytes_text, duration};
use crate::model::{JobsetId, Millis, ScheduledJobset, Style, UnixSecs};

/// Who has been due for so long is treated as if it had been triggered then.
const PATIENCE_SECS: i64 = 3_600;
/// A time of the last check that is further in the future comes from a wrong clock, and counts as none.
const FUTURE_SECS_MAX: i64 = 60;
/// A jobset that waits for its builds is looked at when builds end, but so often at most, and so often without hearing of any.
const LOOK_EVERY_MIN_MS: u64 = 1_000;
const LOOK_EVERY_MAX_MS: u64 = 60_000;
/// An answer that nothing is unfinished is believed for so long.
const ANSWER_AGE_MAX_MS: u64 = 10_000;
/// Failures in a row that still lengthen the pause.
const FAILURES_COUNTED_MAX: u32 = 16;

/// The two clocks: one for durations, one for what stands in rows.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Now {
    pub clock: Millis,
    pub wall: UnixSecs,
}

/// How much may be evaluated.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Limits {
    /// At the same time; at least one.
    pub evaluations_max: u32,
    /// What all evaluations together may use; one may always run.
    pub memory_bytes_max: u64,
    /// What one is counted with.
    pub memory_bytes_each: u64,
    /// After so long one is ended; `None`: never.
    pub time_ms_max: Option<u64>,
    /// The longest pause because of failures; 0: none.
    pub pause_secs_max: i64,
}

impl Limits {
    /// Evaluations that fit, and whether it is memory that allows no more.
    pub fn slots(&self) -> (u32, bool) {
        let by_memory = self.memory_bytes_max / self.memory_bytes_each.max(1);
        let by_memory = u32::try_from(by_memory).unwrap_or(u32::MAX).max(1);
        let slots = self.evaluations_max.max(1);
        (slots.min(by_memory), by_memory < slots)
    }
}

/// How an evaluation ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum How {
    Done,
    /// It failed, died, or could not be started.
    Failed,
    /// By us, for a reason that is none of its own.
    Ended,
}

/// Why one is ended.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Why {
    TimeLimit,
    Deleted,
    Disabled,
    Stopping,
    /// Another evaluator is the active one.
    TakenOver,
}

#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Event {
    /// All jobsets that are enabled, and those that are being evaluated and still there.
    Rows(Vec<ScheduledJobset>),
    /// So many builds of the jobset's newest evaluation are unfinished.
    Unfinished {
        jobset: JobsetId,
        builds: u64,
    },
    /// Builds may have ended or gone.
    BuildsChanged,
    Ended {
        jobset: JobsetId,
        how: How,
    },
    /// Its end stands in its row, or need not.
    Recorded {
        jobset: JobsetId,
    },
    Limits(Limits),
    /// Nothing may be started, and why; or it may be again.
    Hold(Option<Box<str>>),
    /// Rows cannot be read or written until they are told again.
    Away,
    /// Another one is the active evaluator.
    TakenOver,
    Stop,
}

#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Action {
    Start {
        jobset: JobsetId,
    },
    End {
        jobset: JobsetId,
        why: Why,
    },
    /// Answered with [`Event::Unfinished`].
    CountUnfinished {
        jobset: JobsetId,
    },
    /// Answered with [`Event::Rows`].
    Read,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Phase {
    Idle,
    Running {
        since: Millis,
        is_one_shot: bool,
        ending: Option<Why>,
    },
    /// It has ended, and its row does not say so yet.
    Ended,
    /// Its row says so, and was not read since.
    Recorded,
}

/// What is known of the builds of a jobset that is evaluated one at a time.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Builds {
    Unknown,
    Asked,
    Unfinished { builds: u64, at: Millis },
    AllEnded { at: Millis },
}

#[derive(Clone, Debug)]
struct Entry {
    row: ScheduledJobset,
    phase: Phase,
    builds: Builds,
    /// When its last evaluation here ended.
    ended_at: Option<Millis>,
    failures: u32,
    due_since: Option<UnixSecs>,
}

/// What keeps a jobset from being evaluated now.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Rest {
    /// Nothing.
    Due,
    UnknownStyle(i32),
    TriggerOnly,
    /// Its time has not come; it has in so many seconds.
    Later {
        secs: i64,
        is_pause: bool,
    },
    BuildsUnfinished,
}

/// How things are with a jobset, for whoever asks.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Told {
    pub id: JobsetId,
    pub project: Box<str>,
    pub name: Box<str>,
    /// `evaluating`, `ending`, `ended`, `due`, `builds`, `later`, `paused`, `trigger` or `unknown`.
    pub word: &'static str,
    pub why: String,
    /// Seconds until it is due by the clock.
    pub due_in_secs: Option<i64>,
    pub due_since: Option<UnixSecs>,
    pub failures: u32,
}

pub struct Schedule {
    limits: Limits,
    jobsets: BTreeMap<JobsetId, Entry>,
    hold: Option<Box<str>>,
    is_away: bool,
    is_stopping: bool,
    /// Builds changed since those who wait for some were looked at.
    builds_changed: bool,
}

impl Schedule {
    pub fn new(limits: Limits) -> Schedule {
        Schedule {
            limits,
            jobsets: BTreeMap::new(),
            hold: None,
            is_away: true,
            is_stopping: false,
            builds_changed: false,
        }
    }

    /// Takes in what happened and decides what is to be done.
    pub fn turn(&mut self, now: Now, events: impl IntoIterator<Item = Event>) -> Vec<Action> {
        let mut actions = Vec::new();
        for event in events {
            self.take(now, event, &mut actions);
        }
        self.end_late(now, &mut actions);
        self.look_again(now);
        self.notice_due(now);
        if !self.is_away && !self.is_stopping && self.hold.is_none() {
            self.start(now, &mut actions);
        }
        actions
    }

    fn take(&mut self, now: Now, event: Event, actions: &mut Vec<Action>) {
        match event {
            Event::Rows(rows) => self.rows(rows, actions),
            Event::Unfinished { jobset, builds } => {
                if let Some(entry) = self.jobsets.get_mut(&jobset) {
                    let at = now.clock;
                    entry.builds = match builds {
                        0 => Builds::AllEnded { at },
                        builds => Builds::Unfinished { builds, at },
                    };
                }
            }
            Event::BuildsChanged => self.builds_changed = true,
            Event::Ended { jobset, how } => {
                let entry = self.jobsets.get_mut(&jobset);
                let entry = entry.expect("BUG: what is being evaluated is forgotten");
                let is_running = matches!(entry.phase, Phase::Running { .. });
                assert!(is_running, "BUG: ended without being evaluated");
                entry.phase = Phase::Ended;
                entry.builds = Builds::Unknown;
                entry.ended_at = Some(now.clock);
                match how {
                    How::Done => entry.failures = 0,
                    How::Failed => entry.failures = entry.failures.saturating_add(1),
                    How::Ended => {}
                }
            }
            Event::Recorded { jobset } => {
                if let Some(entry) = self.jobsets.get_mut(&jobset) {
                    assert_eq!(entry.phase, Phase::Ended, "BUG: recorded before its end");
                    entry.phase = Phase::Recorded;
                    // A trigger that came meanwhile stands in the row, and perhaps nowhere else.
                    actions.push(Action::Read);
                }
            }
            Event::Limits(limits) => self.limits = limits,
            Event::Hold(why) => self.hold = why,
            Event::Away => {
                self.is_away = true;
                for entry in self.jobsets.values_mut() {
                    entry.builds = Builds::Unknown;
                }
            }
            Event::TakenOver => self.end_all(Why::TakenOver, actions),
            Event::Stop => {
                self.is_stopping = true;
                self.end_all(Why::Stopping, actions);
            }
        }
    }

    fn rows(&mut self, rows: Vec<ScheduledJobset>, actions: &mut Vec<Action>) {
        self.is_away = false;
        let mut rows: BTreeMap<JobsetId, ScheduledJobset> =
            rows.into_iter().map(|row| (row.id, row)).collect();
        self.jobsets.retain(|id, entry| {
            let row = rows.remove(id);
            let is_enabled = row.as_ref().is_some_and(|row| row.is_enabled);
            let is_there = row.is_some();
            if let Some(row) = row {
                entry.row = row;
            }
            match &mut entry.phase {
                Phase::Idle => is_enabled,
                Phase::Recorded => {
                    entry.phase = Phase::Idle;
                    is_enabled
                }
                Phase::Ended => true,
                Phase::Running {
                    is_one_shot,
                    ending,
                    ..
                } => {
                    let why = match (is_there, is_enabled) {
                        (false, _) => Some(Why::Deleted),
                        // Its own last transaction disables it.
                        (true, false) if !*is_one_shot => Some(Why::Disabled),
                        _ => None,
                    };
                    if let (None, Some(why)) = (&ending, why) {
                        *ending = Some(why);
                        actions.push(Action::End { jobset: *id, why });
                    }
                    true
                }
            }
        });
        for (id, row) in rows {
            if row.is_enabled {
                self.jobsets.insert(id, Entry::new(row));
            }
        }
    }

    fn end_all(&mut self, why: Why, actions: &mut Vec<Action>) {
        for (id, entry) in &mut self.jobsets {
            if let Phase::Running { ending, .. } = &mut entry.phase {
                if ending.is_none() {
                    *ending = Some(why);
                    actions.push(Action::End { jobset: *id, why });
                }
            }
        }
    }

    /// Ends what takes too long.
    fn end_late(&mut self, now: Now, actions: &mut Vec<Action>) {
        let Some(time_ms_max) = self.limits.time_ms_max else {
            return;
        };
        for (id, entry) in &mut self.jobsets {
            if let Phase::Running { since, ending, .. } = &mut entry.phase {
                if ending.is_none() && now.clock.since(*since) >= time_ms_max {
                    *ending = Some(Why::TimeLimit);
                    let why = Why::TimeLimit;
                    actions.push(Action::End { jobset: *id, why });
                }
            }
        }
    }

    /// Notes since when who is due.
    fn notice_due(&mut self, now: Now) {
        let pause_secs_max = self.limits.pause_secs_max;
        for entry in self.jobsets.values_mut() {
            let is_due = entry.phase == Phase::Idle && entry.rest(now, pause_secs_max) == Rest::Due;
            entry.due_since = match is_due {
                true => entry.due_since.or(Some(now.wall)),
                false => None,
            };
        }
    }

    fn start(&mut self, now: Now, actions: &mut Vec<Action>) {
        let (slots, _) = self.limits.slots();
        let mut free = slots.saturating_sub(self.running());
        if free == 0 {
            return;
        }
        let mut due: Vec<(UnixSecs, UnixSecs, JobsetId)> = self
            .jobsets
            .iter()
            .filter(|(_, entry)| entry.due_since.is_some())
            .map(|(id, entry)| {
                (
                    entry.triggered(now).unwrap_or(UnixSecs::MAX),
                    entry.row.last_checked,
                    *id,
                )
            })
            .collect();
        due.sort_unstable();
        for (_, _, id) in due {
            if free == 0 {
                break;
            }
            // Who is being asked about keeps its place until the answer comes, or others would always be quicker.
            free -= 1;
            let entry = self.jobsets.get_mut(&id).expect("BUG: due but not there");
            if !entry.may_start(now) {
                entry.ask(id, actions);
                continue;
            }
            entry.phase = Phase::Running {
                since: now.clock,
                is_one_shot: entry.row.style == Style::OneShot,
                ending: None,
            };
            entry.due_since = None;
            actions.push(Action::Start { jobset: id });
        }
    }

    /// Those who wait for builds have to be asked about again when builds changed, and now and then; they are when their
    /// turn comes.
    fn look_again(&mut self, now: Now) {
        let every = self.look_every();
        let mut is_early = false;
        for entry in self.jobsets.values_mut() {
            if let Builds::Unfinished { at, .. } = entry.builds {
                match now.clock.since(at) >= every {
                    true => entry.builds = Builds::Unknown,
                    false => is_early = true,
                }
            }
        }
        self.builds_changed &= is_early;
    }

    fn look_every(&self) -> u64 {
        match self.builds_changed {
            true => LOOK_EVERY_MIN_MS,
            false => LOOK_EVERY_MAX_MS,
        }
    }

    /// When [`Schedule::turn`] is worth calling although nothing happened; `None`: never.
    pub fn wake_at(&self, now: Now) -> Option<Millis> {
        let (slots, _) = self.limits.slots();
        let starts =
            !self.is_away && !self.is_stopping && self.hold.is_none() && self.running() < slots;
        let of = |entry: &Entry| match entry.phase {
            Phase::Running {
                since,
                ending: None,
                ..
            } => self.limits.time_ms_max.map(|max| since + max),
            Phase::Idle if starts => match entry.rest(now, self.limits.pause_secs_max) {
                Rest::Later { secs, .. } => {
                    let ms = u64::try_from(secs).unwrap_or(0).saturating_mul(1_000);
                    Some(now.clock + ms)
                }
                Rest::BuildsUnfinished => match entry.builds {
                    Builds::Unfinished { at, .. } => Some(at + self.look_every()),
                    _ => None,
                },
                // It has been started if it can be.
                Rest::Due | Rest::TriggerOnly | Rest::UnknownStyle(_) => None,
            },
            _ => None,
        };
        self.jobsets.values().filter_map(of).min()
    }

    /// Evaluations under way.
    pub fn running(&self) -> u32 {
        let running = self.jobsets.values().filter(|entry| entry.is_running());
        u32::try_from(running.count()).unwrap_or(u32::MAX)
    }

    /// Those whose rows are wanted even if they are disabled.
    pub fn held_ids(&self) -> Vec<JobsetId> {
        let held = self.jobsets.iter();
        held.filter(|(_, entry)| entry.phase != Phase::Idle)
            .map(|(id, _)| *id)
            .collect()
    }

    pub fn row(&self, jobset: JobsetId) -> Option<&ScheduledJobset> {
        self.jobsets.get(&jobset).map(|entry| &entry.row)
    }

    pub fn limits(&self) -> &Limits {
        &self.limits
    }

    /// Why nothing at all is started.
    pub fn hold(&self) -> Option<&str> {
        match (&self.hold, self.is_stopping, self.is_away) {
            (_, true, _) => Some("the evaluator is stopping"),
            (_, _, true) => Some("PostgreSQL is away"),
            (hold, _, _) => hold.as_deref(),
        }
    }

    /// How things are with each jobset, in the order of their ids.
    pub fn tell(&self, now: Now) -> impl Iterator<Item = Told> + '_ {
        self.jobsets
            .values()
            .map(move |entry| self.tell_one(now, entry))
    }

    fn tell_one(&self, now: Now, entry: &Entry) -> Told {
        let rest = entry.rest(now, self.limits.pause_secs_max);
        let (word, mut why) = match (entry.phase, rest) {
            (
                Phase::Running {
                    ending: Some(why), ..
                },
                _,
            ) => ("ending", format!("it is being ended: {}", why.words())),
            (Phase::Running { since, .. }, _) => {
                let secs = now.clock.since(since) / 1_000;
                let since = duration(i64::try_from(secs).unwrap_or(i64::MAX));
                ("evaluating", format!("it has been evaluated for {since}"))
            }
            (Phase::Ended | Phase::Recorded, _) => {
                ("ended", "it has ended, and that is being recorded".into())
            }
            (Phase::Idle, Rest::Due) => ("due", self.why_due_waits(entry)),
            (Phase::Idle, Rest::BuildsUnfinished) => ("builds", entry.why_builds()),
            (Phase::Idle, Rest::TriggerOnly) => (
                "trigger",
                "its check interval is 0: it is evaluated when it is triggered".into(),
            ),
            (Phase::Idle, Rest::UnknownStyle(code)) => (
                "unknown",
                format!("its `enabled` is {code}, which means nothing: it is evaluated when it is triggered"),
            ),
            (
                Phase::Idle,
                Rest::Later {
                    secs,
                    is_pause: true,
                },
            ) => (
                "paused",
                format!(
                    "it failed {} times in a row: it is tried again in {}, or when it is triggered",
                    entry.failures,
                    duration(secs)
                ),
            ),
            (Phase::Idle, Rest::Later { secs, .. }) => {
                ("later", format!("it is checked again in {}", duration(secs)))
            }
        };
        if entry.row.trigger.is_some() && entry.is_running() {
            let _ = write!(why, "; triggered");
        }
        Told {
            id: entry.row.id,
            project: entry.row.project.clone(),
            name: entry.row.name.clone(),
            word,
            why,
            due_in_secs: match rest {
                Rest::Later { secs, .. } if entry.phase == Phase::Idle => Some(secs),
                _ => None,
            },
            due_since: entry.due_since,
            failures: entry.failures,
        }
    }

    fn why_due_waits(&self, entry: &Entry) -> String {
        let (slots, by_memory) = self.limits.slots();
        if let Some(hold) = self.hold() {
            format!("it is due, but nothing is started: {hold}")
        } else if self.running() >= slots && by_memory {
            format!(
                "it is due and waits for memory: {} evaluations are under way, each counted with {} \
                 (evaluator_workers times evaluator_max_memory_size), and evaluator_memory_budget is {}",
                self.running(),
                bytes_text(self.limits.memory_bytes_each),
                bytes_text(self.limits.memory_bytes_max)
            )
        } else if self.running() >= slots {
            format!(
                "it is due and waits for its turn: {} evaluations are under way (max_concurrent_evals = {})",
                self.running(),
                self.limits.evaluations_max
            )
        } else if entry.builds == Builds::Asked {
            "it is due; whether its builds have ended is being asked".into()
        } else {
            "it is due and about to be started".into()
        }
    }
}

impl Why {
    /// Completes "it is ended: ".
    pub fn words(self) -> &'static str {
        match self {
            Why::TimeLimit => "its time is over (evaluator_timeout)",
            Why::Deleted => "the jobset was deleted",
            Why::Disabled => "the jobset or its project was disabled",
            Why::Stopping => "the evaluator is stopping",
            Why::TakenOver => "another evaluator has become the active one",
        }
    }
}

impl Entry {
    fn new(row: ScheduledJobset) -> Entry {
        Entry {
            row,
            phase: Phase::Idle,
            builds: Builds::Unknown,
            ended_at: None,
            failures: 0,
            due_since: None,
        }
    }

    fn is_running(&self) -> bool {
        matches!(self.phase, Phase::Running { .. })
    }

    /// What Hydra's rules say of it while it is not being evaluated.
    fn rest(&self, now: Now, pause_secs_max: i64) -> Rest {
        let row = &self.row;
        if row.trigger.is_some() {
            return Rest::Due;
        }
        if row.check_interval_secs <= 0 {
            return Rest::TriggerOnly;
        }
        if let Style::Unknown(code) = row.style {
            return Rest::UnknownStyle(code);
        }
        let (interval, is_pause) = self.interval(pause_secs_max);
        let secs = match self.age_secs(now) {
            Some(age) => interval.saturating_sub(age),
            None => 0,
        };
        if secs > 0 {
            return Rest::Later { secs, is_pause };
        }
        match self.builds {
            Builds::Unfinished { .. } if row.style == Style::OneAtATime => Rest::BuildsUnfinished,
            _ => Rest::Due,
        }
    }

    /// Seconds since it was checked; `None`: it never was.
    fn age_secs(&self, now: Now) -> Option<i64> {
        let checked = self.row.last_checked;
        let by_row = match checked {
            0 => None,
            checked if checked > now.wall.saturating_add(FUTURE_SECS_MAX) => None,
            checked => Some(now.wall.saturating_sub(checked).max(0)),
        };
        // Its row may not say so: then too it is not evaluated without end.
        let by_us = self.ended_at.map(|at| {
            let secs = now.clock.since(at) / 1_000;
            i64::try_from(secs).unwrap_or(i64::MAX)
        });
        match (by_row, by_us) {
            (Some(a), Some(b)) => Some(a.min(b)),
            (age, None) | (None, age) => age,
        }
    }

    /// Its check interval, longer after failures in a row, and whether it is.
    fn interval(&self, pause_secs_max: i64) -> (i64, bool) {
        let interval = self.row.check_interval_secs;
        let doublings = self.failures.min(FAILURES_COUNTED_MAX).saturating_sub(1);
        let pause = interval.saturating_mul(1 << doublings).min(pause_secs_max);
        (interval.max(pause), pause > interval)
    }

    /// When it was triggered, or counts as that.
    fn triggered(&self, now: Now) -> Option<UnixSecs> {
        let by_age = self
            .due_since
            .map(|since| since.saturating_add(PATIENCE_SECS))
            .filter(|at| *at <= now.wall);
        match (self.row.trigger, by_age) {
            (Some(a), Some(b)) => Some(a.min(b)),
            (at, None) | (None, at) => at,
        }
    }

    /// Whether it is known that nothing it has to wait for is unfinished.
    fn may_start(&self, now: Now) -> bool {
        match self.builds {
            _ if self.row.style != Style::OneAtATime || self.row.trigger.is_some() => true,
            Builds::AllEnded { at } => now.clock.since(at) <= ANSWER_AGE_MAX_MS,
            _ => false,
        }
    }

    fn ask(&mut self, jobset: JobsetId, actions: &mut Vec<Action>) {
        if self.builds != Builds::Asked {
            self.builds = Builds::Asked;
            actions.push(Action::CountUnfinished { jobset });
        }
    }

    fn why_builds(&self) -> String {
        match self.builds {
            Builds::Unfinished { builds, .. } => format!(
                "it is evaluated one at a time, and {builds} builds of its newest evaluation are unfinished"
            ),
            _ => "whether its builds have ended is being asked".into(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::random::Random;
    use std::collections::BTreeSet;

    const GIB: u64 = 1 << 30;
    const DAWN: u64 = 1_000_000_000;

    fn limits(evaluations_max: u32) -> Limits {
        Limits {
            evaluations_max,
            memory_bytes_max: 1_000 * GIB,
            memory_bytes_each: 4 * GIB,
            time_ms_max: Some(21_600_000),
            pause_secs_max: 3_600,
        }
    }

    fn at(secs: u64) -> Now {
        Now {
            clock: Millis::from_secs(DAWN + secs),
            wall: (DAWN + secs) as UnixSecs,
        }
    }

    fn row(id: i32) -> ScheduledJobset {
        ScheduledJobset {
            id: JobsetId(id),
            project: "p".into(),
            name: format!("s{id}").into(),
            last_checked: 0,
            trigger: None,
            check_interval_secs: 300,
            is_enabled: true,
            style: Style::Schedule,
        }
    }

    /// Those started, in order.
    fn started(actions: &[Action]) -> Vec<i32> {
        let start = |action: &Action| match action {
            Action::Start { jobset } => Some(jobset.0),
            _ => None,
        };
        actions.iter().filter_map(start).collect()
    }

    /// An evaluation has ended in this way; its row is as given.
    fn end(schedule: &mut Schedule, now: Now, how: How, row: ScheduledJobset) -> Vec<Action> {
        let jobset = row.id;
        schedule.turn(
            now,
            [
                Event::Ended { jobset, how },
                Event::Recorded { jobset },
                Event::Rows(vec![row]),
            ],
        )
    }

    fn words(schedule: &Schedule, now: Now) -> Vec<String> {
        schedule
            .tell(now)
            .map(|told| format!("{} {}: {}", told.id, told.word, told.why))
            .collect()
    }

    #[test]
    fn those_triggered_come_first_then_those_not_checked_for_the_longest_time() {
        let mut schedule = Schedule::new(limits(10));
        let wall = at(0).wall;
        let rows = vec![
            ScheduledJobset {
                last_checked: wall - 400,
                ..row(1)
            },
            ScheduledJobset {
                last_checked: wall - 500,
                ..row(2)
            },
            row(3),
            ScheduledJobset {
                trigger: Some(wall - 5),
                check_interval_secs: 0,
                last_checked: wall,
                ..row(4)
            },
            ScheduledJobset {
                trigger: Some(wall - 9),
                last_checked: wall,
                style: Style::OneAtATime,
                ..row(5)
            },
            ScheduledJobset {
                check_interval_secs: 0,
                ..row(6)
            },
            ScheduledJobset {
                last_checked: wall - 299,
                ..row(7)
            },
            ScheduledJobset {
                style: Style::OneShot,
                last_checked: wall - 300,
                ..row(8)
            },
            ScheduledJobset {
                style: Style::Unknown(7),
                ..row(9)
            },
            ScheduledJobset {
                last_checked: wall + 3_600,
                ..row(10)
            },
        ];
        let actions = schedule.turn(at(0), [Event::Rows(rows)]);
        assert_eq!(started(&actions), [5, 4, 3, 2, 1, 8, 10]);
        assert_eq!(schedule.wake_at(at(0)), Some(at(1).clock));
        assert_eq!(
            words(&schedule, at(0))[5..7],
            [
                "6 trigger: its check interval is 0: it is evaluated when it is triggered",
                "7 later: it is checked again in 1 s"
            ]
        );
    }

    #[test]
    fn memory_counts_as_well_as_the_number_and_one_may_always_run() {
        let with = |memory: u64| {
            let mut schedule = Schedule::new(Limits {
                memory_bytes_max: memory,
                ..limits(4)
            });
            let actions = schedule.turn(at(0), [Event::Rows((1..=6).map(row).collect())]);
            (started(&actions).len(), words(&schedule, at(0)).pop())
        };
        let (started, why) = with(9 * GIB);
        assert_eq!(started, 2);
        assert_eq!(
            why.as_deref(),
            Some(
                "6 due: it is due and waits for memory: 2 evaluations are under way, each counted with 4 GiB \
                 (evaluator_workers times evaluator_max_memory_size), and evaluator_memory_budget is 9 GiB"
            )
        );
        assert_eq!(with(GIB).0, 1);
        assert_eq!(with(1 << 40).0, 4);
    }

    #[test]
    fn whoever_fails_again_and_again_is_tried_ever_more_rarely_but_at_once_when_triggered() {
        let mut schedule = Schedule::new(limits(1));
        let mut secs = 0;
        assert_eq!(
            started(&schedule.turn(at(0), [Event::Rows(vec![row(1)])])),
            [1]
        );
        let mut pauses = Vec::new();
        for _ in 0..6 {
            let checked = ScheduledJobset {
                last_checked: at(secs).wall,
                ..row(1)
            };
            assert!(started(&end(&mut schedule, at(secs), How::Failed, checked)).is_empty());
            let wake = schedule.wake_at(at(secs)).expect("it is tried again");
            pauses.push(wake.since(at(secs).clock) / 1_000);
            secs += pauses.last().expect("one");
            assert_eq!(started(&schedule.turn(at(secs), [])), [1]);
        }
        assert_eq!(pauses, [300, 600, 1_200, 2_400, 3_600, 3_600]);
        let triggered = ScheduledJobset {
            last_checked: at(secs).wall,
            trigger: Some(at(secs).wall),
            ..row(1)
        };
        let actions = end(&mut schedule, at(secs), How::Failed, triggered);
        assert_eq!(started(&actions), [1]);
        let checked = ScheduledJobset {
            last_checked: at(secs).wall,
            ..row(1)
        };
        end(&mut schedule, at(secs), How::Done, checked);
        assert_eq!(schedule.wake_at(at(secs)), Some(at(secs + 300).clock));
    }

    #[test]
    fn one_at_a_time_waits_for_its_builds_and_does_not_look_all_the_time() {
        let mut schedule = Schedule::new(limits(1));
        let jobset = JobsetId(1);
        let one = ScheduledJobset {
            style: Style::OneAtATime,
            ..row(1)
        };
        let count = [Action::CountUnfinished { jobset }];
        let unfinished = |builds| [Event::Unfinished { jobset, builds }];
        assert_eq!(schedule.turn(at(0), [Event::Rows(vec![one])]), count);
        assert_eq!(schedule.turn(at(0), unfinished(3)), []);
        assert_eq!(
            words(&schedule, at(0)),
            ["1 builds: it is evaluated one at a time, and 3 builds of its newest evaluation are unfinished"]
        );
        // Without a word about builds it is looked at every minute.
        assert_eq!(schedule.wake_at(at(0)), Some(at(60).clock));
        assert_eq!(schedule.turn(at(59), []), []);
        assert_eq!(schedule.turn(at(60), []), count);
        assert_eq!(schedule.turn(at(60), unfinished(2)), []);
        // A storm of words costs a look a second.
        for _ in 0..100 {
            assert_eq!(schedule.turn(at(60), [Event::BuildsChanged]), []);
        }
        assert_eq!(schedule.wake_at(at(60)), Some(at(61).clock));
        assert_eq!(schedule.turn(at(61), []), count);
        assert_eq!(started(&schedule.turn(at(61), unfinished(0))), [1]);
    }

    #[test]
    fn what_takes_too_long_is_ended_once_and_what_is_gone_is_ended_too() {
        let mut schedule = Schedule::new(limits(10));
        let shot = ScheduledJobset {
            style: Style::OneShot,
            ..row(3)
        };
        schedule.turn(at(0), [Event::Rows(vec![row(1), row(2), shot.clone()])]);
        let off = |row| ScheduledJobset {
            is_enabled: false,
            ..row
        };
        // 1 is gone, 2 is disabled, 3 has disabled itself by its last transaction.
        let rows = vec![off(row(2)), off(shot)];
        let ends = |jobset, why| Action::End {
            jobset: JobsetId(jobset),
            why,
        };
        let actions = schedule.turn(at(1), [Event::Rows(rows.clone())]);
        assert_eq!(actions, [ends(1, Why::Deleted), ends(2, Why::Disabled)]);
        assert_eq!(schedule.turn(at(2), [Event::Rows(rows)]), []);
        assert_eq!(schedule.wake_at(at(2)), Some(at(21_600).clock));
        assert_eq!(schedule.turn(at(21_600), []), [ends(3, Why::TimeLimit)]);
        assert_eq!(schedule.turn(at(30_000), []), []);
        assert_eq!(schedule.held_ids(), [1, 2, 3].map(JobsetId));
        for id in 1..=3 {
            let jobset = JobsetId(id);
            let how = How::Ended;
            let actions = schedule.turn(
                at(30_001),
                [Event::Ended { jobset, how }, Event::Recorded { jobset }],
            );
            assert_eq!(actions, [Action::Read]);
        }
        schedule.turn(at(30_002), [Event::Rows(Vec::new())]);
        assert_eq!(words(&schedule, at(30_002)), [""; 0]);
    }

    /// A jobset of the made-up database.
    #[derive(Clone)]
    struct Db {
        row: ScheduledJobset,
        unfinished: u64,
        /// What the trigger was changed to at the start, to be cleared at the end.
        mark: Option<UnixSecs>,
        /// Triggers that no evaluation has begun after, by their times.
        unserved: Vec<u64>,
        begun: u64,
    }

    struct World {
        random: Random,
        ms: u64,
        jobsets: BTreeMap<JobsetId, Db>,
        /// What was told last; what it decides is judged by that.
        told: BTreeMap<JobsetId, ScheduledJobset>,
        schedule: Schedule,
        /// When each child ends, how, and whether that is by its own will.
        children: BTreeMap<JobsetId, (u64, How)>,
        self_disabled: BTreeSet<JobsetId>,
        unrecorded: BTreeSet<JobsetId>,
        database_away: bool,
        news: Vec<(u64, Event)>,
        idle_turns: u64,
    }

    impl World {
        fn now(&self) -> Now {
            Now {
                clock: Millis(self.ms),
                wall: (self.ms / 1_000) as UnixSecs,
            }
        }

        fn rows(&mut self) -> Event {
            let held = self.schedule.held_ids();
            let rows = self.jobsets.values().map(|db| db.row.clone());
            let rows = rows.filter(|row| row.is_enabled || held.contains(&row.id));
            let rows: Vec<ScheduledJobset> = rows.collect();
            self.told = rows.iter().map(|row| (row.id, row.clone())).collect();
            Event::Rows(rows)
        }

        /// One turn, and those that its actions lead to.
        fn turn(&mut self, events: Vec<Event>) {
            let mut events = events;
            loop {
                let was_told = !events.is_empty();
                let actions = self.schedule.turn(self.now(), events);
                if actions.is_empty() {
                    self.idle_turns += u64::from(!was_told);
                    break;
                }
                events = Vec::new();
                for action in actions {
                    self.carry_out(action, &mut events);
                }
                if events.is_empty() {
                    break;
                }
            }
            let (slots, _) = self.schedule.limits().slots();
            assert!(self.children.len() as u32 <= slots, "too many at once");
        }

        fn carry_out(&mut self, action: Action, events: &mut Vec<Event>) {
            let now = self.now();
            match action {
                Action::Start { jobset } => {
                    self.judge(jobset);
                    let length = self.random.below(600_000);
                    let how = match self.random.chance(0.3) {
                        true => How::Failed,
                        false => How::Done,
                    };
                    if let Some(db) = self.jobsets.get_mut(&jobset) {
                        db.row.trigger = db.row.trigger.map(|at| at.min(now.wall - 1));
                        db.mark = db.row.trigger;
                        db.unserved.clear();
                        db.begun += 1;
                    }
                    self.children.insert(jobset, (self.ms + length, how));
                }
                Action::End { jobset, why } => {
                    assert!(
                        why != Why::Disabled || !self.self_disabled.contains(&jobset),
                        "a one-shot that has finished is ended"
                    );
                    let (ends, how) = self.children.get_mut(&jobset).expect("it runs");
                    *ends = (*ends).min(self.ms + 5_000);
                    *how = match why {
                        Why::TimeLimit => How::Failed,
                        _ => How::Ended,
                    };
                }
                Action::CountUnfinished { jobset } if !self.database_away => {
                    let builds = self.jobsets.get(&jobset).map_or(0, |db| db.unfinished);
                    events.push(Event::Unfinished { jobset, builds });
                }
                Action::Read if !self.database_away => {
                    let rows = self.rows();
                    events.push(rows);
                }
                Action::CountUnfinished { .. } | Action::Read => {}
            }
        }

        /// Is it due by Hydra's rules, as far as was told?
        fn judge(&self, jobset: JobsetId) {
            assert!(!self.children.contains_key(&jobset), "twice at once");
            assert!(!self.database_away && !self.unrecorded.contains(&jobset));
            let row = &self.told[&jobset];
            let age = self.now().wall - row.last_checked;
            let unfinished = self.jobsets.get(&jobset).map_or(0, |db| db.unfinished);
            let is_free = row.style != Style::OneAtATime || unfinished == 0;
            let by_clock = row.check_interval_secs > 0 && age >= row.check_interval_secs;
            assert!(row.is_enabled);
            assert!(
                row.trigger.is_some() || by_clock && is_free,
                "{row:?} is not due"
            );
        }

        /// A child's end: what it wrote itself, then what the service writes.
        fn end_children(&mut self, events: &mut Vec<Event>) {
            let ended: Vec<JobsetId> = self
                .children
                .iter()
                .filter(|(_, (ends, _))| *ends <= self.ms)
                .map(|(id, _)| *id)
                .collect();
            for jobset in ended {
                let (_, how) = self.children.remove(&jobset).expect("it runs");
                let wall = self.now().wall;
                // Some forget to say that they checked.
                let says = self.random.chance(0.9);
                let builds = self.random.below(3);
                if let (Some(db), true) = (self.jobsets.get_mut(&jobset), how != How::Ended) {
                    if says {
                        db.row.last_checked = wall;
                    }
                    if how == How::Done {
                        db.unfinished += builds;
                    }
                }
                self.self_disabled.remove(&jobset);
                self.unrecorded.insert(jobset);
                events.push(Event::Ended { jobset, how });
            }
        }

        fn record(&mut self, events: &mut Vec<Event>) {
            if self.database_away {
                return;
            }
            for jobset in std::mem::take(&mut self.unrecorded) {
                if let Some(db) = self.jobsets.get_mut(&jobset) {
                    if db.mark.is_some() && db.row.trigger == db.mark {
                        db.row.trigger = None;
                    }
                    db.mark = None;
                }
                events.push(Event::Recorded { jobset });
            }
        }

        /// Something happens outside.
        fn disturb(&mut self) {
            let ids: Vec<JobsetId> = self.jobsets.keys().copied().collect();
            let id = ids[self.random.below(ids.len() as u64) as usize];
            let what = self.random.below(12);
            let soon = self.ms + self.random.below(500);
            let skew = self.random.below(20) as i64 - 10;
            let wall = self.now().wall;
            let ms = self.ms;
            let db = self.jobsets.get_mut(&id).expect("one of them");
            match what {
                0..=3 if db.row.is_enabled => {
                    db.row.trigger = Some(wall + skew);
                    db.unserved.push(ms);
                    self.news.push((soon, Event::Rows(Vec::new())));
                }
                4 | 5 => {
                    db.unfinished = db.unfinished.saturating_sub(1);
                    self.news.push((soon, Event::BuildsChanged));
                }
                // A one-shot's last transaction.
                6 if self.children.contains_key(&id) && self.told[&id].style == Style::OneShot => {
                    db.row.is_enabled = false;
                    db.unserved.clear();
                    self.self_disabled.insert(id);
                    self.news.push((soon, Event::Rows(Vec::new())));
                }
                7 => {
                    db.row.is_enabled = !db.row.is_enabled;
                    db.unserved.clear();
                    db.row.trigger = None;
                    self.news.push((soon, Event::Rows(Vec::new())));
                }
                8 if ids.len() > 3 => {
                    self.jobsets.remove(&id);
                    self.news.push((soon, Event::Rows(Vec::new())));
                }
                9 => {
                    let new = JobsetId(ids.last().expect("one").0 + 1);
                    let db = made_up(&mut self.random, new);
                    self.jobsets.insert(new, db);
                    self.news.push((soon, Event::Rows(Vec::new())));
                }
                10 => {
                    self.database_away = !self.database_away;
                    let event = match self.database_away {
                        true => Event::Away,
                        false => Event::Rows(Vec::new()),
                    };
                    self.news.push((self.ms, event));
                }
                11 => {
                    let hold = self.random.chance(0.3).then(|| "no room".into());
                    self.news.push((soon, Event::Hold(hold)));
                }
                _ => {}
            }
        }

        /// What is heard by now. Rows are read when that is acted upon, as the service does.
        fn hear(&mut self, events: &mut Vec<Event>) {
            let ms = self.ms;
            let (now, later) = std::mem::take(&mut self.news)
                .into_iter()
                .partition(|(at, _)| *at <= ms);
            self.news = later;
            for (_, event) in now {
                match event {
                    Event::Rows(_) if self.database_away => {}
                    Event::Rows(_) => {
                        let rows = self.rows();
                        events.push(rows);
                    }
                    event => events.push(event),
                }
            }
        }

        /// On to the next thing that happens.
        fn step(&mut self, disturbed_at: Option<u64>) {
            let wake = self.schedule.wake_at(self.now()).map(|at| at.0);
            let news = self.news.iter().map(|(at, _)| *at).min();
            let child = self.children.values().map(|(ends, _)| *ends).min();
            let next = [wake, news, child, disturbed_at].into_iter().flatten();
            // The service turns now and then in any case.
            let next = next.min().unwrap_or(u64::MAX).min(self.ms + 3_600_000);
            self.ms = self.ms.max(next);
            let mut events = Vec::new();
            self.end_children(&mut events);
            self.hear(&mut events);
            self.record(&mut events);
            self.turn(events);
        }
    }

    fn made_up(random: &mut Random, id: JobsetId) -> Db {
        let row = ScheduledJobset {
            check_interval_secs: [0, 30, 300, 3_600][random.below(4) as usize],
            style: Style::from_code(1 + random.below(3) as i32),
            ..row(id.0)
        };
        Db {
            row,
            unfinished: random.below(2),
            mark: None,
            unserved: Vec::new(),
            begun: 0,
        }
    }

    /// Whatever happens: limits hold, nothing is evaluated twice at once or without being due, no trigger is lost, nobody
    /// who is due is forgotten, and nothing wakes up for nothing.
    #[test]
    fn any_course_of_things_ends_with_every_trigger_served_and_nobody_forgotten() {
        for seed in 0..300 {
            let mut random = Random::new(seed);
            let slots = 1 + random.below(4) as u32;
            let jobsets = (1..=4 + random.below(8) as i32)
                .map(|id| (JobsetId(id), made_up(&mut random, JobsetId(id))))
                .collect();
            let mut world = World {
                random,
                ms: DAWN * 1_000,
                jobsets,
                told: BTreeMap::new(),
                schedule: Schedule::new(Limits {
                    time_ms_max: Some(500_000),
                    ..limits(slots)
                }),
                children: BTreeMap::new(),
                self_disabled: BTreeSet::new(),
                unrecorded: BTreeSet::new(),
                database_away: false,
                news: Vec::new(),
                idle_turns: 0,
            };
            let rows = world.rows();
            world.turn(vec![rows]);
            for _ in 0..300 {
                world.disturb();
                let pause = world.random.below(60_000);
                let until = world.ms + pause;
                while world.ms < until {
                    world.step(Some(until));
                }
            }
            // Then all is quiet: whatever is due is begun.
            world.database_away = false;
            let rows = world.rows();
            let quiet = vec![Event::Hold(None), rows];
            world.turn(quiet);
            let (began, idle_before) = (world.ms, world.idle_turns);
            let begun: BTreeMap<JobsetId, u64> = world
                .jobsets
                .iter()
                .map(|(id, db)| (*id, db.begun))
                .collect();
            while world.ms < began + 4 * 3_600_000 {
                for db in world.jobsets.values_mut() {
                    db.unfinished = db.unfinished.saturating_sub(1);
                }
                world.step(None);
            }
            for (id, db) in &world.jobsets {
                if !db.row.is_enabled {
                    continue;
                }
                let late = db.unserved.iter().filter(|at| **at < began);
                assert_eq!(late.count(), 0, "seed {seed}: a trigger of {id} is lost");
                assert!(
                    db.row.check_interval_secs == 0 || db.begun > begun[id],
                    "seed {seed}: {id} is forgotten: {:?}",
                    words(&world.schedule, world.now())
                );
            }
            // Four hours: a look a minute for each that waits for builds is the most.
            let idle = world.idle_turns - idle_before;
            assert!(idle < 240 * 12, "seed {seed}: {idle} turns for nothing");
        }
    }
}
