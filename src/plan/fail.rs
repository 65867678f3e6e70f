//! What follows from a step that cannot be had: its builds and everything that depends on it end.
//!
//! A failure walks up the graph: each step it reaches is doomed, its builds are finished, and it is freed. The walk
//! may take several turns; whatever is attached to a doomed step meanwhile is reached as well. Dependencies that
//! nobody wants any more are dropped, and killed if they run.

use std::sync::Arc;

use super::action::{Action, Fail, FailedBuild, Level, Record};
use super::builds::{Build, BuildState};
use super::graph::{State, NONE};
use super::{Plan, Timer, UNSUPPORTED_PER_TURN};
use crate::model::{BuildId, BuildStatus, MachineId, Millis, RunId, UnixSecs};

/// Builds in one record: a `build_finished` payload must stay below PostgreSQL's 8,000 bytes.
pub const BUILDS_PER_RECORD: usize = 500;
/// Steps looked at in search of the lowest build that depends on one.
const SEARCH_STEPS_MAX: usize = 256;

/// Why a step cannot be had.
pub enum Cause {
    /// An output is in FailedPaths.
    FailedBefore,
    /// No machine can do it.
    Unsupported,
    /// Collected, or unusable.
    Abort {
        message: Box<str>,
    },
    Run(FailedRun),
}

pub struct FailedRun {
    pub run: RunId,
    pub machine: MachineId,
    pub primary: BuildId,
    pub status: BuildStatus,
    pub message: Option<Box<str>>,
    pub start: UnixSecs,
    pub stop: UnixSecs,
}

/// A failure on its way up the graph.
pub struct Failing {
    /// Doomed steps still to be finished.
    work: Vec<u32>,
    /// The next step is the one that failed.
    at_origin: bool,
    drv: Arc<str>,
    kind: Kind,
}

enum Kind {
    Abort {
        message: Box<str>,
    },
    /// A record without its builds.
    Fail {
        record: Fail,
        primary_has_row: bool,
    },
}

/// What the build's row says when the step's row says `step`.
fn build_status(step: BuildStatus, top_level: bool) -> BuildStatus {
    match step {
        BuildStatus::Failed | BuildStatus::CachedFailure if top_level => BuildStatus::Failed,
        BuildStatus::Failed | BuildStatus::CachedFailure => BuildStatus::DepFailed,
        other => other,
    }
}

impl Plan {
    /// Dooms a step and begins to fail what depends on it.
    pub(super) fn fail_step(&mut self, step: u32, cause: Cause) {
        let drv = self.drv(step);
        let now = self.now.secs();
        // Without a build there is nothing to record, and no primary.
        let lowest = self.lowest_dependent(step).unwrap_or_default();
        let mut record = Fail {
            drv: drv.clone(),
            run: None,
            machine: None,
            step_status: BuildStatus::Failed,
            message: None,
            primary: lowest,
            builds: Vec::new(),
            start: now,
            stop: now,
            cached: false,
        };
        let mut primary_has_row = false;
        let kind = match cause {
            Cause::Abort { message } => Kind::Abort { message },
            Cause::FailedBefore => {
                record.step_status = BuildStatus::CachedFailure;
                record.cached = true;
                Kind::Fail {
                    record,
                    primary_has_row,
                }
            }
            Cause::Unsupported => {
                let class = &self.index.classes[self.graph.step(step).class as usize];
                let text = format!(
                    "aborting unsupported build step '{drv}' (type '{}')",
                    class.system_type
                );
                record.step_status = BuildStatus::Unsupported;
                record.message =
                    Some(format!("unsupported system type '{}'", class.system_type).into());
                self.say(Level::Error, text);
                Kind::Fail {
                    record,
                    primary_has_row,
                }
            }
            Cause::Run(failed) => {
                record.run = Some(failed.run);
                record.machine = Some(failed.machine);
                record.step_status = failed.status;
                record.message = failed.message;
                record.start = failed.start;
                record.stop = failed.stop;
                record.cached = failed.status == BuildStatus::CachedFailure;
                // The row's owner may have been cancelled meanwhile; then the lowest of the others stands for it.
                if self.builds.is_queued(failed.primary) {
                    record.primary = failed.primary;
                    primary_has_row = true;
                }
                Kind::Fail {
                    record,
                    primary_has_row,
                }
            }
        };
        self.set_state(step, State::Doomed);
        self.failing.push_back(Failing {
            work: vec![step],
            at_origin: true,
            drv,
            kind,
        });
    }

    /// Goes on with failures until they are done or the budget is spent.
    pub(super) fn fail_on(&mut self, left: &mut i64) {
        while *left > 0 {
            let Some(mut failing) = self.failing.pop_front() else {
                return;
            };
            let mut failed: Vec<(BuildId, u32, bool)> = Vec::new();
            while *left > 0 {
                let Some(step) = failing.work.pop() else {
                    break;
                };
                let top_level = std::mem::take(&mut failing.at_origin);
                for (id, slot) in self.builds.detach_all(step, &mut self.graph) {
                    self.limits_fall = true;
                    failed.push((id, slot, top_level));
                    *left -= 1;
                }
                let mut dependents = Vec::new();
                let walked = self.graph.cut_rdeps(step, |dependent, number| {
                    if dependent.state != State::Doomed {
                        dependents.push(number);
                    }
                });
                for &dependent in &dependents {
                    // The same step may wait twice if an input is listed twice.
                    if self.graph.step(dependent).state != State::Doomed {
                        self.set_state(dependent, State::Doomed);
                        failing.work.push(dependent);
                    }
                }
                *left -= i64::from(walked) + self.free_step(step);
            }
            self.record_failed(&failing, failed);
            if !failing.work.is_empty() {
                self.failing.push_front(failing);
            }
        }
    }

    fn record_failed(&mut self, failing: &Failing, mut failed: Vec<(BuildId, u32, bool)>) {
        failed.sort_unstable();
        self.totals.builds_done += failed.len() as u64;
        for builds in failed.chunks(BUILDS_PER_RECORD) {
            let record = match &failing.kind {
                Kind::Abort { message } => Record::Abort {
                    builds: builds.iter().map(|&(id, ..)| id).collect(),
                    drv: failing.drv.clone(),
                    message: message.clone(),
                    at: self.now.secs(),
                },
                Kind::Fail {
                    record,
                    primary_has_row,
                } => {
                    let builds = builds.iter().map(|&(id, _, top_level)| FailedBuild {
                        id,
                        status: build_status(record.step_status, top_level),
                        step_row: !(*primary_has_row && id == record.primary),
                    });
                    Record::Fail(Fail {
                        builds: builds.collect(),
                        ..record.clone()
                    })
                }
            };
            let ticket = self.record(record);
            for &(_, slot, _) in builds {
                self.builds.set_state(slot, BuildState::Finished(ticket));
            }
        }
    }

    /// Drops steps that nobody wants any more; kills those that run.
    pub(super) fn drop_unwanted(&mut self, left: &mut i64) {
        while *left > 0 {
            let Some(step) = self.unwanted.pop() else {
                return;
            };
            *left -= 1;
            let slot = self.graph.step(step);
            if self.graph.is_wanted(step) {
                continue;
            }
            match slot.state {
                // Valid ones are kept for a while, doomed ones are on their way out.
                State::Free | State::Valid | State::Doomed => {}
                State::Running => {
                    let run = self.runs.at(slot.aux);
                    if !run.killed {
                        run.killed = true;
                        self.out.push(Action::Kill { run: run.id });
                    }
                }
                _ => *left -= self.free_step(step),
            }
        }
    }

    /// The lowest unfinished build whose top-level derivation it is, else the lowest one that depends on the step;
    /// `None` if none does. Among very many dependents, when the lowest one ever is gone, any of them.
    pub(super) fn lowest_dependent(&self, step: u32) -> Option<BuildId> {
        if let Some(&(id, _)) = self.builds.of_step(step, &self.graph).first() {
            return Some(id);
        }
        // Builds only leave; so the lowest that ever wanted it is the lowest, if it is still there.
        let lowest = BuildId(self.graph.step(step).lowest);
        if self.builds.is_queued(lowest) {
            return Some(lowest);
        }
        let (found, complete) = self.search_dependents(step, SEARCH_STEPS_MAX);
        if let Some(lowest) = found.iter().min() {
            return Some(*lowest);
        }
        if complete {
            return None;
        }
        // Whatever is wanted leads up to a build.
        let mut at = step;
        while self.graph.step(at).builds == NONE {
            at = self.graph.rdeps(at).next()?;
        }
        self.builds
            .of_step(at, &self.graph)
            .first()
            .map(|&(id, _)| id)
    }

    /// The builds found among the first `steps_max` steps that depend on `step` (itself included), and whether
    /// these are all.
    pub(super) fn search_dependents(&self, step: u32, steps_max: usize) -> (Vec<BuildId>, bool) {
        let mut builds = Vec::new();
        let complete = self.walk_dependents(step, steps_max, |build| {
            builds.push(build.id);
            false
        });
        (builds, complete)
    }

    /// Goes through the builds of the first `steps_max` steps that depend on `step` (itself included), until `enough` says
    /// that it is. True if it went through all there are.
    pub(super) fn walk_dependents(
        &self,
        step: u32,
        steps_max: usize,
        mut enough: impl FnMut(&Build) -> bool,
    ) -> bool {
        let mut seen = vec![step];
        let mut at = 0;
        while let Some(&step) = seen.get(at) {
            at += 1;
            let mut build = self.graph.step(step).builds;
            while build != NONE {
                let slot = self.builds.get(build);
                if enough(slot) {
                    return false;
                }
                build = slot.next;
            }
            for dependent in self.graph.rdeps(step) {
                if seen.contains(&dependent) {
                    continue;
                }
                if seen.len() >= steps_max {
                    return false;
                }
                seen.push(dependent);
            }
        }
        true
    }

    /// When the steps of a class that became runnable at `since` have been unsupported for too long; `None` if they
    /// are supported, or no machines file says so (D11).
    pub(super) fn unsupported_at(&self, class: u32, since: Millis) -> Option<Millis> {
        let loaded = self.machines.loaded_since?;
        if self.machines.supports(class) {
            return None;
        }
        let had = self.index.classes[class as usize].supported_until;
        let supported = had.map_or(Millis(0), |until| {
            until + self.settings.unsupported_grace_ms
        });
        Some(since.max(loaded).max(supported) + self.settings.unsupported_ms_max)
    }

    /// A step has become runnable: is there a machine for it?
    pub(super) fn watch_step(&mut self, step: u32) {
        let class = self.graph.step(step).class;
        if let Some(at) = self.unsupported_at(class, self.now) {
            self.watch_class(class, at);
        }
    }

    /// Machines or settings changed: looks at every class again.
    pub(super) fn watch_classes(&mut self) {
        for class in 0..self.index.classes.len() as u32 {
            if self.index.classes[class as usize].runnable > 0 {
                self.watch_class(class, self.now);
            }
        }
    }

    fn watch_class(&mut self, class: u32, at: Millis) {
        let due = &mut self.class_due[class as usize];
        if at < *due {
            *due = at;
            self.timers
                .push(std::cmp::Reverse((at, Timer::Class(class))));
        }
    }

    /// Fails the steps of a class that have been unsupported for too long. True if there are more.
    pub(super) fn fail_unsupported(&mut self, class: u32) -> bool {
        self.enter_rekeyed();
        let mut next = Millis::NEVER;
        let mut due = Vec::new();
        for step in self.index.runnable_in(class, &self.graph.steps) {
            let since = self.began + u64::from(self.graph.step(step).since) * 1000;
            match self.unsupported_at(class, since) {
                None => return false,
                Some(at) if at <= self.now => due.push(step),
                Some(at) => next = next.min(at),
            }
        }
        due.sort_unstable();
        due.dedup();
        let more = due.len() > UNSUPPORTED_PER_TURN;
        due.truncate(UNSUPPORTED_PER_TURN);
        for step in due {
            self.totals.steps_unsupported += 1;
            self.fail_step(step, Cause::Unsupported);
        }
        let next = if more { self.now } else { next };
        if next < Millis::NEVER {
            self.watch_class(class, next);
        }
        more
    }
}
