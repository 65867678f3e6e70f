//! What the plan wants done. The driver carries actions out in order and never blocks on one.

use std::sync::Arc;

use super::event::QuestionId;
use crate::model::{
    BuildId, BuildOutput, BuildStatus, MachineId, Phase, RunId, Substituted, Ticket, UnixSecs,
};

#[derive(Clone, Debug)]
pub enum Action {
    /// Ask the world about a step; answered by `Event::Facts`.
    Inspect {
        question: QuestionId,
        drv: Arc<str>,
    },
    /// Ask for the [`BuildOutput`] of a derivation whose outputs are all valid; answered by `Event::Described`.
    Describe {
        question: QuestionId,
        drv: Arc<str>,
    },
    /// Read these builds' rows (those still unfinished) and send them as `Event::Builds`.
    ReadBuilds {
        builds: Vec<BuildId>,
    },
    /// One `Event::Builds` has been digested; the monitor may send the next page.
    PageTaken,
    Start(Start),
    /// End this run: its step is not wanted any more.
    Kill {
        run: RunId,
    },
    /// Write to the database; acknowledged by `Event::Written`.
    Record {
        ticket: Ticket,
        record: Record,
    },
    /// One line for the operator, in Hydra's wording where people grep it.
    Say {
        level: Level,
        text: Box<str>,
    },
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Level {
    Info,
    Warn,
    Error,
}

/// Start one attempt of a step on a machine. The slot itself makes the step's busy row under
/// `ticket`, since it reads the derivation; the ticket is acknowledged like every other.
#[derive(Clone, Debug)]
pub struct Start {
    pub run: RunId,
    pub ticket: Ticket,
    pub drv: Arc<str>,
    pub machine: MachineId,
    /// Owns the step's row.
    pub primary: BuildId,
    /// Builds whose top-level derivation this is: `build_started` for each.
    pub announce: Vec<BuildId>,
    /// The largest of the builds that want the step, seconds; 0 is no limit.
    pub max_silent_secs: u32,
    pub timeout_secs: u32,
    /// How often it is to be built again after it was built, where the machine can.
    pub repeats: u32,
    /// How many builds want the step, for the log line.
    pub wanted_by: u32,
}

#[derive(Clone, Debug)]
pub enum Record {
    /// `BuildSteps.busy`; of one run only the newest unwritten phase matters.
    Phase { run: RunId, phase: Phase },
    /// Ends the run's row, with `step_finished`.
    FinishStep(FinishStep),
    /// Builds that succeeded together, each with `build_finished` in the same transaction.
    Succeed(Succeed),
    /// Builds that failed together; split into several records when they are many.
    Fail(Fail),
    /// Outputs that were brought into the destination store without building; nobody is told.
    Substitute {
        /// Owns the rows: the lowest build of this derivation, else the lowest that wants the step.
        build: BuildId,
        drv: Arc<str>,
        outputs: Vec<Substituted>,
    },
    /// Builds whose derivation was collected (or cannot be used): aborted, with a message.
    Abort {
        builds: Vec<BuildId>,
        drv: Arc<str>,
        message: Box<str>,
        at: UnixSecs,
    },
}

#[derive(Clone, Debug)]
pub struct FinishStep {
    pub run: RunId,
    pub status: BuildStatus,
    pub message: Option<Box<str>>,
    pub start: UnixSecs,
    pub stop: UnixSecs,
    pub overhead_ms: u32,
    pub times_built: u32,
    pub non_deterministic: bool,
    /// The attempt's log exists; `-` is announced otherwise.
    pub has_log: bool,
    /// Another attempt will follow: keep this one's log under its attempt number.
    pub keep_attempt_log: bool,
    /// Insert the step's outputs into FailedPaths.
    pub cache_failure: bool,
    /// On success: the outputs' paths for `BuildStepOutputs`.
    pub output: Option<Arc<BuildOutput>>,
}

#[derive(Clone, Debug)]
pub struct Succeed {
    /// Build and whether it counts as cached; ascending ids.
    pub builds: Vec<(BuildId, bool)>,
    pub output: Arc<BuildOutput>,
    pub start: UnixSecs,
    pub stop: UnixSecs,
}

#[derive(Clone, Debug)]
pub struct Fail {
    /// The step that failed.
    pub drv: Arc<str>,
    /// The run that failed, if one ran; its machine and outputs go into the propagated rows.
    pub run: Option<RunId>,
    pub machine: Option<MachineId>,
    /// What the step's rows say.
    pub step_status: BuildStatus,
    pub message: Option<Box<str>>,
    /// First in the `build_finished` payload; owner of the step's row (`propagatedFrom` of the others).
    pub primary: BuildId,
    /// Ascending ids.
    pub builds: Vec<FailedBuild>,
    pub start: UnixSecs,
    pub stop: UnixSecs,
    /// `isCachedBuild` (a cached failure).
    pub cached: bool,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct FailedBuild {
    pub id: BuildId,
    pub status: BuildStatus,
    /// Give it a finished step row of its own for the failed step.
    pub step_row: bool,
}
