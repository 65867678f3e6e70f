//! What a successful step leaves behind: what Hydra shows of a build's outputs.

/// The result of a succeeded build, ready for its rows. The plan carries it without looking.
#[derive(Clone, PartialEq, Debug, Default)]
pub struct BuildOutput {
    /// An output has `nix-support/failed`: the build ends as "failed with output".
    pub failed: bool,
    pub release_name: Option<String>,
    /// Sum of the NAR sizes of the closure of all outputs, bytes.
    pub closure_size: u64,
    /// Sum of the NAR sizes of all outputs, bytes.
    pub size: u64,
    /// Output name and full store path, ordered by name.
    pub outputs: Vec<(String, String)>,
    /// In the order of their `productnr`, which starts at 1.
    pub products: Vec<BuildProduct>,
    pub metrics: Vec<BuildMetric>,
}

/// A row of `BuildProducts`.
#[derive(Clone, PartialEq, Debug, Default)]
pub struct BuildProduct {
    pub kind: String,
    pub subtype: String,
    /// Bytes; only regular files have one.
    pub file_size: Option<u64>,
    /// Base 16; only regular files have one.
    pub sha256: Option<String>,
    pub path: String,
    pub name: String,
    pub default_path: String,
}

/// A row of `BuildMetrics`.
#[derive(Clone, PartialEq, Debug, Default)]
pub struct BuildMetric {
    pub name: String,
    pub unit: Option<String>,
    pub value: f64,
}

/// An output that was brought into the destination store without building it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Substituted {
    /// Full store path.
    pub path: String,
    pub start: super::UnixSecs,
    pub stop: super::UnixSecs,
}
