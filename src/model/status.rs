//! The numbers Hydra writes into `Builds.buildStatus`, `BuildSteps.status` and `BuildSteps.busy`.

/// `Builds.buildStatus` and `BuildSteps.status`.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
#[repr(i32)]
pub enum BuildStatus {
    Succeeded = 0,
    Failed = 1,
    /// Builds only.
    DepFailed = 2,
    /// A misc or infrastructure failure, a collected derivation, a crash.
    Aborted = 3,
    Cancelled = 4,
    /// Builds only: an output has `nix-support/failed`.
    FailedWithOutput = 6,
    TimedOut = 7,
    /// Steps only; the build gets 1 or 2.
    CachedFailure = 8,
    Unsupported = 9,
    LogLimitExceeded = 10,
    NarSizeLimitExceeded = 11,
    NotDeterministic = 12,
    /// Steps only: the derivation named in `resolvedDrvPath` was built in its place.
    Resolved = 13,
}

impl BuildStatus {
    pub fn code(self) -> i32 {
        self as i32
    }

    pub fn from_code(code: i32) -> Option<BuildStatus> {
        use BuildStatus::*;
        Some(match code {
            0 => Succeeded,
            1 => Failed,
            2 => DepFailed,
            3 => Aborted,
            4 => Cancelled,
            6 => FailedWithOutput,
            7 => TimedOut,
            8 => CachedFailure,
            9 => Unsupported,
            10 => LogLimitExceeded,
            11 => NarSizeLimitExceeded,
            12 => NotDeterministic,
            13 => Resolved,
            _ => return None,
        })
    }

    /// The words a person reads.
    pub fn text(self) -> &'static str {
        use BuildStatus::*;
        match self {
            Succeeded => "succeeded",
            Failed => "failed",
            DepFailed => "dependency failed",
            Aborted => "aborted",
            Cancelled => "cancelled",
            FailedWithOutput => "failed with output",
            TimedOut => "timed out",
            CachedFailure => "cached failure",
            Unsupported => "unsupported system type",
            LogLimitExceeded => "log limit exceeded",
            NarSizeLimitExceeded => "output limit exceeded",
            NotDeterministic => "not deterministic",
            Resolved => "resolved",
        }
    }
}

/// What a run is doing: `BuildSteps.busy`.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
#[repr(i32)]
pub enum Phase {
    Preparing = 1,
    Connecting = 10,
    SendingInputs = 20,
    Building = 30,
    /// The machine's slot is free from here on.
    ReceivingOutputs = 40,
    PostProcessing = 50,
}

impl Phase {
    /// In the order in which they come.
    pub const ALL: [Phase; 6] = [
        Phase::Preparing,
        Phase::Connecting,
        Phase::SendingInputs,
        Phase::Building,
        Phase::ReceivingOutputs,
        Phase::PostProcessing,
    ];

    pub fn code(self) -> i32 {
        self as i32
    }

    pub fn from_code(code: i32) -> Option<Phase> {
        use Phase::*;
        Some(match code {
            1 => Preparing,
            10 => Connecting,
            20 => SendingInputs,
            30 => Building,
            40 => ReceivingOutputs,
            50 => PostProcessing,
            _ => return None,
        })
    }

    /// Its place in [`Phase::ALL`].
    pub fn index(self) -> usize {
        match self {
            Phase::Preparing => 0,
            Phase::Connecting => 1,
            Phase::SendingInputs => 2,
            Phase::Building => 3,
            Phase::ReceivingOutputs => 4,
            Phase::PostProcessing => 5,
        }
    }

    pub fn text(self) -> &'static str {
        match self {
            Phase::Preparing => "preparing",
            Phase::Connecting => "connecting",
            Phase::SendingInputs => "sending inputs",
            Phase::Building => "building",
            Phase::ReceivingOutputs => "receiving outputs",
            Phase::PostProcessing => "post-processing",
        }
    }
}
