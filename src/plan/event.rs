//! What the plan is told. Every answer carries the id of its question; stale answers are counted and dropped.

use std::sync::Arc;

use crate::base::texts::Texts;
use crate::model::{
    BuildId, BuildOutput, BuildStatus, JobsetId, MachineId, Phase, RunId, Substituted, Ticket,
    UnixSecs,
};

/// Identifies one question the plan asked ([`super::action::Action::Inspect`],
/// [`super::action::Action::Describe`]). Never reused.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct QuestionId(pub u64);

/// One pass of the monitor over the unfinished builds. Rising from 1.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
pub struct Pass(pub u64);

/// Events that the driver gives the plan in one turn, at most.
pub const EVENTS_PER_TURN: usize = 256;
/// Rows, answers and the like that it gives it in one turn, at most, unless a single event brings more.
pub const ITEMS_PER_TURN: usize = 4_096;

/// What a turn is about; one turn takes several.
#[derive(Clone, Debug)]
pub enum Event {
    /// A jobset seen for the first time; comes before its first build. `history` is machine time
    /// already used: (start, seconds), also older than the window, which the plan prunes.
    Jobset {
        id: JobsetId,
        name: Box<str>,
        shares: u32,
        history: Vec<(UnixSecs, u32)>,
    },
    /// `Jobsets.schedulingShares` changed.
    Shares {
        id: JobsetId,
        shares: u32,
    },
    /// Rows of unfinished builds, at most 1,000. Known ones are ignored except for a raised
    /// priority. The plan answers with [`super::action::Action::PageTaken`] when it is ready for more.
    Builds {
        rows: Vec<QueuedBuild>,
    },
    /// Part of the list of *all* unfinished builds at one instant, in chunks. `written` is the newest
    /// ticket that was committed before the list was read: a build that the plan has finished with a
    /// later ticket may still be listed; one finished with an earlier ticket and listed was restarted.
    /// Builds listed and unknown are asked for with [`super::action::Action::ReadBuilds`]; after the chunk with
    /// `last`, builds known before the pass began and not listed are gone (cancelled, deleted).
    Snapshot {
        pass: Pass,
        written: Ticket,
        builds: Vec<(BuildId, i32)>,
        last: bool,
    },
    /// Announces that the monitor begins to read the list of pass `pass` now: builds ingested after this
    /// event may be missing from that list and are not gone because of it.
    SnapshotBegins {
        pass: Pass,
    },
    /// Answers to [`super::action::Action::Inspect`].
    Facts {
        answers: Vec<(QuestionId, StepFacts)>,
    },
    /// Answer to [`super::action::Action::Describe`]: `Err` is a message; the plan then builds the step again.
    Described {
        question: QuestionId,
        output: Result<Arc<BuildOutput>, Box<str>>,
    },
    /// The machines as configured now, complete. Machines not listed are removed: no new starts.
    Machines {
        machines: Vec<MachineSpec>,
        loaded_from_file: bool,
    },
    RunPhase {
        run: RunId,
        phase: Phase,
    },
    /// Exactly one for every [`super::action::Action::Start`].
    RunEnded {
        run: RunId,
        end: RunEnd,
    },
    /// All tickets up to and including this one are committed (or known to be void).
    Written {
        upto: Ticket,
    },
    /// The builds that go before everything else, complete, and until when (`None`: until they have ended).
    Emergencies {
        builds: Vec<(BuildId, Option<UnixSecs>)>,
    },
    /// The settings that steer decisions changed (SIGHUP).
    Settings(PlanSettings),
    /// What operators ordered about machines, complete: those about machines that are not configured are kept.
    Orders {
        orders: Vec<MachineOrder>,
    },
    /// Start nothing new while this holds; `None`: it holds no more.
    Hold {
        hold: Hold,
        why: Option<Box<str>>,
    },
    /// A machine has too little room: nothing is started there; `None`: it has enough again.
    Shortage {
        machine: MachineId,
        why: Option<Box<str>>,
    },
    /// Start nothing new from now on.
    Stop,
    /// Only time has passed.
    Tick,
}

/// What an operator ordered about a machine.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct MachineOrder {
    /// First column of the machines file.
    pub machine: Box<str>,
    pub state: OrderState,
    /// When it ends by itself.
    pub until: Option<UnixSecs>,
    pub reason: Option<Box<str>>,
    pub who: Box<str>,
    pub since: UnixSecs,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum OrderState {
    /// No order holds; one that is new also ends a setting aside.
    Enabled,
    /// Running steps finish, nothing new is started.
    Drained,
    /// The same, and running steps are stopped and go elsewhere.
    Disabled,
}

impl OrderState {
    /// As it is kept in the database.
    pub fn word(self) -> &'static str {
        match self {
            OrderState::Enabled => "enabled",
            OrderState::Drained => "drained",
            OrderState::Disabled => "disabled",
        }
    }

    pub fn from_word(word: &str) -> Option<OrderState> {
        [
            OrderState::Enabled,
            OrderState::Drained,
            OrderState::Disabled,
        ]
        .into_iter()
        .find(|state| state.word() == word)
    }
}

/// What keeps everything from being started, until it is over.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Hold {
    /// PostgreSQL is away, or our lock in it is lost.
    Database,
    /// A disk of this host is nearly full.
    Disk,
}

impl Hold {
    pub const ALL: [Hold; 2] = [Hold::Database, Hold::Disk];

    /// A word for programs and metrics.
    pub fn word(self) -> &'static str {
        match self {
            Hold::Database => "database-away",
            Hold::Disk => "disk-low",
        }
    }
}

impl Event {
    /// How much it brings; for [`ITEMS_PER_TURN`].
    pub fn items(&self) -> usize {
        match self {
            Event::Builds { rows } => rows.len().max(1),
            Event::Snapshot { builds, .. } => builds.len().max(1),
            Event::Facts { answers } => answers.len().max(1),
            _ => 1,
        }
    }
}

/// A row of `Builds` with `finished = 0`.
#[derive(Clone, Debug)]
pub struct QueuedBuild {
    pub id: BuildId,
    pub jobset: JobsetId,
    /// Full path of the top-level derivation.
    pub drv: Box<str>,
    /// Seconds; NULL columns come as Hydra's defaults.
    pub max_silent_secs: u32,
    pub timeout_secs: u32,
    pub global_priority: i32,
    pub local_priority: i32,
}

/// What the world knows about a step.
#[derive(Clone, Debug)]
pub enum StepFacts {
    /// Some output is missing in the destination store: it has to be built.
    Needed(StepSpec),
    /// Every output is valid in the destination store.
    Valid,
    /// What was missing has been brought into the destination store without building: from a substituter, or from the
    /// local store. Never empty.
    Substituted { outputs: Vec<Substituted> },
    /// That cannot be found out yet, since others are before it: ask again after a while.
    Later,
    /// Some output is in FailedPaths.
    FailedBefore,
    /// The derivation is not in the local store any more.
    Collected,
    /// The derivation cannot be used: unreadable, damaged, of a kind that cannot be built here.
    Unreadable { message: Box<str> },
}

/// What the plan must know about a step that is to be built.
#[derive(Clone, Debug)]
pub struct StepSpec {
    /// The derivation's platform, e.g. `x86_64-linux`, or `builtin`.
    pub platform: Box<str>,
    /// Sorted, without duplicates.
    pub required_features: Vec<Box<str>>,
    pub prefer_local: bool,
    /// Full paths of the input derivations.
    pub inputs: Texts,
}

/// One build machine as configured.
#[derive(Clone, PartialEq, Debug)]
pub struct MachineSpec {
    pub id: MachineId,
    /// First column of the machines file, verbatim.
    pub name: Box<str>,
    pub systems: Vec<Box<str>>,
    pub slots: u32,
    pub speed_factor: f32,
    /// Includes the mandatory ones.
    pub supported_features: Vec<Box<str>>,
    pub mandatory_features: Vec<Box<str>>,
    pub enabled: bool,
}

/// How a run ended.
#[derive(Clone, Debug)]
pub struct RunEnd {
    pub outcome: Outcome,
    /// The builder's clock where it gave one, else ours.
    pub start: UnixSecs,
    pub stop: UnixSecs,
    /// Milliseconds spent copying in and out.
    pub overhead_ms: u32,
    /// The log exists and belongs to this attempt.
    pub has_log: bool,
}

/// The three kinds of fault are kept apart: the build's own, the machine's, ours.
#[derive(Clone, Debug)]
pub enum Outcome {
    /// All outputs are valid in the destination store.
    Built {
        output: Arc<BuildOutput>,
        /// The machine had it or substituted it: nothing was built.
        cached: bool,
        times_built: u32,
        non_deterministic: bool,
    },
    /// The build's own, final failure. `status` is Failed, TimedOut, LogLimitExceeded,
    /// NarSizeLimitExceeded, NotDeterministic or Aborted; `can_cache` puts its outputs into FailedPaths.
    Failed {
        status: BuildStatus,
        message: Box<str>,
        can_cache: bool,
        times_built: u32,
        non_deterministic: bool,
    },
    /// The build's own failure that another try may cure: counts against the step's tries.
    /// `status` is Failed (Nix said "transient") or Aborted ("misc").
    Transient {
        status: BuildStatus,
        message: Box<str>,
    },
    /// Cannot connect, handshake, substitution, sending, a broken connection. Never counts against the step.
    MachineFault { message: Box<str> },
    /// Disk, database, local store. Never counts against the step nor the machine.
    OurFault { message: Box<str> },
    /// What these input derivations made was valid once and is not any more: they are asked about again, and built
    /// again where that is needed, before the step is.
    InputsGone {
        message: Box<str>,
        inputs: Vec<Box<str>>,
    },
    /// The derivation disappeared between inspection and start.
    Collected,
    /// Ended because the plan said so ([`super::action::Action::Kill`]).
    Cancelled,
}

/// Of a project (`jobset` is `None`: all its jobsets together) or of one jobset at most so many steps run at a time.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cap {
    pub project: Box<str>,
    pub jobset: Option<Box<str>>,
    pub steps: u32,
}

/// Steps that this jobset wants are built so many times more.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Repeats {
    pub project: Box<str>,
    pub jobset: Box<str>,
    pub times: u32,
}

/// Settings the plan obeys. Times in milliseconds.
#[derive(Clone, Debug, PartialEq)]
pub struct PlanSettings {
    /// A step's own tries (Hydra: 5).
    pub tries_max: u32,
    pub retry_interval_ms: u64,
    pub retry_factor: f64,
    pub retry_interval_ms_max: u64,
    pub unsupported_ms_max: u64,
    /// A system some machine had within this time stays supported.
    pub unsupported_grace_ms: u64,
    /// The last machine that could run a waiting step is tried at least this often.
    pub probe_interval_ms: u64,
    /// Faults of a machine within this time of the last counted one do not count again (Hydra: 30 s).
    pub fault_burst_ms: u64,
    pub share_window_secs: u32,
    /// Above this many unwritten tickets: no new starts, no further page of the queue.
    pub unwritten_tickets_max: u64,
    /// After this long without a start, although steps are ready and slots free, the plan says so; 0: never.
    pub stall_warning_ms: u64,
    /// Questions to the inspectors under way at once.
    pub questions_max: u32,
    /// Work items (edges walked, steps touched) per turn.
    pub turn_budget: u32,
    pub caps: Vec<Cap>,
    pub repeats: Vec<Repeats>,
}

impl Default for PlanSettings {
    fn default() -> Self {
        PlanSettings {
            tries_max: 5,
            retry_interval_ms: 60_000,
            retry_factor: 3.0,
            retry_interval_ms_max: 1_800_000,
            unsupported_ms_max: 0,
            unsupported_grace_ms: 3_600_000,
            probe_interval_ms: 60_000,
            fault_burst_ms: 30_000,
            share_window_secs: 86_400,
            unwritten_tickets_max: 20_000,
            stall_warning_ms: 0,
            questions_max: 4_096,
            turn_budget: 20_000,
            caps: Vec::new(),
            repeats: Vec::new(),
        }
    }
}
