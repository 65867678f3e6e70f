//! The result of a build as both protocols report it.
//!
//! Does not know what Hydra makes of it; that is `model::BuildStatus`, and the slot translates.

use std::io::Read;

use super::frame::Reader;
use super::Error;
use crate::nix::{excerpt, store_path};

/// Outputs of one derivation that a result may list.
const OUTPUTS_MAX: usize = 10_000;

/// How a build ended, in Nix's words.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum ResultStatus {
    Built,
    Substituted,
    AlreadyValid,
    /// The builder failed; it would again.
    PermanentFailure,
    InputRejected,
    OutputRejected,
    /// Possibly not the builder's fault.
    TransientFailure,
    CachedFailure,
    /// Took or was silent for too long.
    TimedOut,
    /// Nix could not build it: a missing input, the wrong system type.
    MiscFailure,
    DependencyFailed,
    LogLimitExceeded,
    NotDeterministic,
    ResolvesToAlreadyValid,
    NoSubstituters,
    /// A number that Nix 2.8 does not know.
    Other(u64),
}

impl ResultStatus {
    pub fn from_code(code: u64) -> ResultStatus {
        use ResultStatus::*;
        match code {
            0 => Built,
            1 => Substituted,
            2 => AlreadyValid,
            3 => PermanentFailure,
            4 => InputRejected,
            5 => OutputRejected,
            6 => TransientFailure,
            7 => CachedFailure,
            8 => TimedOut,
            9 => MiscFailure,
            10 => DependencyFailed,
            11 => LogLimitExceeded,
            12 => NotDeterministic,
            13 => ResolvesToAlreadyValid,
            14 => NoSubstituters,
            n => Other(n),
        }
    }

    /// Whether the outputs are there.
    pub fn is_success(self) -> bool {
        use ResultStatus::*;
        matches!(
            self,
            Built | Substituted | AlreadyValid | ResolvesToAlreadyValid
        )
    }
}

/// The result of one build.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct BuildResult {
    pub status: ResultStatus,
    /// For people, without terminal escapes; empty on success. Its wording differs from version
    /// to version.
    pub message: String,
    /// 0 if nothing had to be built.
    pub times_built: u64,
    pub non_deterministic: bool,
    /// Seconds since 1970 by the peer's clock; 0 if nothing was started.
    pub start: u64,
    /// Like `start`; also 0 after a timeout.
    pub stop: u64,
    /// Output name and base name of its path. Empty after a failure or from an old server.
    pub built_outputs: Vec<(String, String)>,
}

impl BuildResult {
    /// Reads a result. `has_times` and `has_outputs` depend on the protocol's version.
    pub(crate) fn read<R: Read>(
        r: &mut Reader<R>,
        has_times: bool,
        has_outputs: bool,
    ) -> Result<BuildResult, Error> {
        let mut result = BuildResult {
            status: ResultStatus::from_code(r.u64()?),
            message: r.text("error message")?,
            times_built: 0,
            non_deterministic: false,
            start: 0,
            stop: 0,
            built_outputs: Vec::new(),
        };
        if has_times {
            result.times_built = r.u64()?;
            result.non_deterministic = r.bool("non-determinism flag")?;
            result.start = r.u64()?;
            result.stop = r.u64()?;
        }
        if has_outputs {
            for _ in 0..r.count("built outputs", OUTPUTS_MAX)? {
                let id = r.word("realisation id")?;
                let realisation = r.word("realisation")?;
                result.built_outputs.push(output_of(&id, &realisation)?);
            }
        }
        Ok(result)
    }
}

/// Output name and base name from an id like `sha256:<hex>!out` and a realisation in JSON.
fn output_of(id: &str, realisation: &str) -> Result<(String, String), Error> {
    let (_, name) = id
        .rsplit_once('!')
        .filter(|(_, name)| !name.is_empty())
        .ok_or_else(|| {
            Error::protocol("a realisation id", format!("'{}'", excerpt(id.as_bytes())))
        })?;
    let bad = || {
        Error::protocol(
            "a realisation with an outPath",
            format!("'{}'", excerpt(realisation.as_bytes())),
        )
    };
    let json: serde_json::Value = serde_json::from_str(realisation).map_err(|_| bad())?;
    let path = json["outPath"].as_str().ok_or_else(bad)?;
    store_path::check_base_name(path)?;
    Ok((name.to_owned(), path.to_owned()))
}
