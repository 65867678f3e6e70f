//! What a store records about a valid path, the same in every protocol.
//!
//! Knows no protocol's order of fields and does not check that the fields belong together.

use super::hash::Sha256Hash;

/// A valid store path and what its store knows of it.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct ValidPathInfo {
    /// Full store path.
    pub path: String,
    /// Full path of the derivation that made it, if known.
    pub deriver: Option<String>,
    /// SHA-256 of the NAR.
    pub nar_hash: Sha256Hash,
    /// Full store paths, `path` itself included if it refers to itself.
    pub references: Vec<String>,
    /// Seconds since 1970; 0 if unknown.
    pub registration_time: u64,
    /// Bytes of the NAR; never 0 for a path that exists.
    pub nar_size: u64,
    /// Built by that store itself, so trusted without a signature.
    pub ultimate: bool,
    /// `<key name>:<base 64>` each.
    pub sigs: Vec<String>,
    /// The content address, such as `fixed:r:sha256:...` or `text:sha256:...`.
    pub ca: Option<String>,
}
