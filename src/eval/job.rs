//! The words of a job: what is to be evaluated, and what came out.

use std::collections::BTreeMap;

/// What to evaluate.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Source {
    /// An expression in a file of an input.
    Legacy {
        /// As Nix finds it along the search path, without the angle brackets: `nixpkgs/release.nix`.
        file: String,
        /// The search path: names and full store paths.
        search: Vec<(String, String)>,
        /// Arguments for functions on the way, by name.
        arguments: Vec<(String, Argument)>,
    },
    /// A flake that is locked to one revision.
    Flake { locked: String },
}

/// An argument of the expression.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Argument {
    /// A string, as `--argstr` takes it.
    String(String),
    /// A Nix expression, as `--arg` takes it.
    Expression(String),
}

/// One job of a jobset.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Job {
    /// Attribute names joined with dots; empty for the top level.
    pub name: String,
    /// What was found, unless it could not be evaluated.
    pub derivation: Option<JobDerivation>,
    /// Why it could not be evaluated or, of an aggregate, which constituents are missing. Without terminal colours.
    pub error: Option<String>,
}

/// What a job builds and what it says of itself.
///
/// Source: the output of hydra-eval-jobs.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct JobDerivation {
    pub nix_name: String,
    pub system: String,
    /// Full path of the derivation.
    pub drv_path: String,
    /// Full paths by output name; none where the path is known only after the build.
    pub outputs: BTreeMap<String, Option<String>>,
    pub description: String,
    pub homepage: String,
    pub license: String,
    pub maintainers: String,
    /// 100 if the job says nothing.
    pub scheduling_priority: i32,
    /// Seconds; 36000 if the job says nothing.
    pub timeout: i32,
    /// Seconds; 7200 if the job says nothing.
    pub max_silent: i32,
    pub is_channel: bool,
    /// Of an aggregate: the derivations of all its constituents, full paths, in the order found, each once.
    pub constituents: Vec<String>,
    /// Whether the job is an aggregate, which may have no constituent at all.
    pub is_aggregate: bool,
}
