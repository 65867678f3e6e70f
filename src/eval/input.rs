//! The words of an input of a jobset: as configured, and as fetched. How each type is fetched is elsewhere.

use std::collections::BTreeMap;

use crate::model::ids::BuildId;

/// One alternative of an input, as configured.
///
/// Source: `JobsetInputs` and `JobsetInputAlts`; for a declarative project `Projects.decltype` and `declvalue`.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct InputSpec {
    /// The name by which the expression knows it, as `nixpkgs`.
    pub name: String,
    /// `git`, `string`, `path` and so on.
    pub kind: String,
    /// What the kind needs, as `https://example.org/x.git main`.
    pub value: String,
    /// Whether its committers are told of failures.
    pub email_responsible: bool,
}

/// An input as fetched. Which fields there are depends on the type.
///
/// Source: the hashes that Hydra's `fetchInput` makes; `JobsetEvalInputs` keeps a part of it.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct FetchedInput {
    pub name: String,
    pub kind: String,
    pub email_responsible: bool,
    /// The value of a string, boolean or nix input, as configured.
    pub value: Option<String>,
    /// Where its files are, as a full path in the local store.
    pub store_path: Option<String>,
    pub uri: Option<String>,
    /// A commit, or whatever tells one state from the next.
    pub revision: Option<String>,
    /// The revision where it is a number, as in Subversion; `revision` is not set then.
    pub rev_number: Option<i64>,
    pub rev_count: Option<i64>,
    pub git_tag: Option<String>,
    pub short_rev: Option<String>,
    pub sha256: Option<String>,
    /// The build it comes from.
    pub dependency: Option<BuildId>,
    pub version: Option<String>,
    pub output_name: Option<String>,
    /// The derivation it comes from, if that is valid.
    pub drv_path: Option<String>,
    /// Of an `eval` input: the output of each job, as a full path.
    pub jobs: Option<BTreeMap<String, String>>,
}
