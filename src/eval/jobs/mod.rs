//! Evaluating the jobs of a source: in parallel, each job on its own, with whatever Nix is installed.
//!
//! | file | knows |
//! |---|---|
//! | `walk.nix` | what an evaluating process is told first: walking a jobset, and what to say of a job |
//! | `protocol` | lines to such a process and its answers: pure |
//! | `words` | what is said when something goes wrong: pure |
//! | `ranges` | what is still to be evaluated, shared by the workers |
//! | `process` | one evaluating process: started, spoken to, watched, ended |
//! | `pool` | the workers, and what becomes of what they hear |
//! | `aggregates` | constituents that an aggregate knows by name |
//! | `nix_eval_jobs` | the other evaluator |
//!
//! A worker is a thread with one process at a time, `nix repl` on pipes. It takes a batch of attributes and says them in one
//! line; the process tells of each as soon as it is evaluated. So the attribute after the last one told of is always the one
//! at which a process is, fails, loops, grows or dies. An error ends the line and nothing else: the rest of the batch is said
//! again. A process that has grown beyond its limit, or has died, is replaced; the attribute it was at is tried once more,
//! alone in a new process, and only if that ends too is it that job's error.
//!
//! Does not know projects, inputs and tables.

mod aggregates;
mod nix_eval_jobs;
mod pool;
mod process;
mod protocol;
mod ranges;
mod words;

use std::path::PathBuf;

use serde_json::{json, Value};

use super::inputs;
use super::job::{Job, Source};
use crate::config::settings::{EvaluatorProgram, EvaluatorSettings};
use crate::store::local::LocalStore;

/// What is to be evaluated, and how.
pub struct Request<'a> {
    pub source: Source,
    pub settings: EvaluatorSettings,
    /// Where each job's derivation gets a GC root. `None`: nowhere, so it may be collected at any time.
    pub gc_roots_dir: Option<PathBuf>,
    /// Further settings of Nix's, which go before ours.
    pub options: Vec<(String, String)>,
    /// Make no GC roots, rewrite no aggregates. (Derivations are written all the same.)
    pub dry_run: bool,
    /// The store that Nix evaluates into.
    pub store: &'a LocalStore,
}

impl Request<'_> {
    fn is_flake(&self) -> bool {
        matches!(self.source, Source::Flake { .. })
    }

    fn is_pure(&self) -> bool {
        self.settings.pure_eval.unwrap_or(self.is_flake())
    }

    /// Whether files and URLs have to be allowed. Those of a flake's inputs would have to be too, and purity leaves a flake
    /// nothing else to reach.
    fn is_restricted(&self) -> bool {
        !(self.is_pure() && self.is_flake())
    }
}

/// How far an evaluation is.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct Progress {
    /// Jobs known so far; sets that were not looked into count as one.
    pub found: u64,
    pub evaluated: u64,
    /// Of those evaluated.
    pub failed: u64,
    /// All evaluating processes together, now.
    pub memory_bytes: u64,
    /// Evaluating processes now.
    pub workers: u32,
}

impl Progress {
    pub fn to_json(&self) -> Value {
        json!({
            "found": self.found, "evaluated": self.evaluated, "failed": self.failed,
            "memory_bytes": self.memory_bytes, "workers": self.workers,
        })
    }
}

/// What an evaluation came to.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct Summary {
    pub jobs: u64,
    /// Of those.
    pub failed: u64,
    /// Memory of the largest evaluating process, bytes; 0 if it is not known.
    pub peak_process_bytes: u64,
    /// Memory of all evaluating processes together at its highest, bytes; 0 if it is not known.
    pub peak_bytes: u64,
    /// Evaluating processes that were started.
    pub processes: u64,
}

/// Why nothing can be said of the jobs.
#[derive(Debug, thiserror::Error)]
pub enum EvalError {
    #[error("cannot start {program}: {why}")]
    Start { program: String, why: String },
    /// The top of the jobset, in Nix's words or ours.
    #[error("{0}")]
    Top(String),
    #[error(
        "error: flake '{}' does not provide any Hydra jobs or checks",
        inputs::shown_flake(flake)
    )]
    NoJobs { flake: String },
    #[error(
        "error: flake '{}' is not locked: it names neither a revision nor a narHash",
        inputs::shown_flake(flake)
    )]
    NotLocked { flake: String },
    #[error("error: the jobset has more than {max} jobs: does a set contain itself?")]
    TooMany { max: u64 },
    /// A process that does not understand us.
    #[error("the evaluating process does not work: {0}")]
    Process(String),
    #[error("cannot use {}: {why}", path.display())]
    Folder { path: PathBuf, why: String },
    /// The other evaluator ended badly.
    #[error("{program} returned {how}:\n{words}")]
    Program {
        program: &'static str,
        how: String,
        words: String,
    },
    #[error("the evaluation was stopped")]
    Stopped,
}

/// Evaluates all jobs. Each is given to `job` once, in no particular order; `progress` hears how far it is a few times a
/// second.
///
/// # Errors
/// When the source as a whole cannot be evaluated. What is wrong with a job is in the job.
pub fn evaluate(
    request: &Request<'_>,
    job: &mut dyn FnMut(Job),
    progress: &dyn Fn(&Progress),
) -> Result<Summary, EvalError> {
    if let Source::Flake { locked } = &request.source {
        if !is_locked(locked) {
            return Err(EvalError::NotLocked {
                flake: locked.clone(),
            });
        }
    }
    match request.settings.program {
        EvaluatorProgram::Builtin => pool::evaluate(request, job, progress),
        EvaluatorProgram::NixEvalJobs => nix_eval_jobs::evaluate(request, job, progress),
    }
}

/// Whether a flake reference names one state: a revision, in the path or as a parameter, or a hash of its contents.
fn is_locked(reference: &str) -> bool {
    let reference = reference.split('#').next().unwrap_or_default();
    let is_revision =
        |text: &str| matches!(text.len(), 40 | 64) && text.bytes().all(|b| b.is_ascii_hexdigit());
    let (path, parameters) = reference.split_once('?').unwrap_or((reference, ""));
    path.split('/').any(is_revision)
        || parameters
            .split('&')
            .any(|parameter| match parameter.split_once('=') {
                Some(("rev", revision)) => is_revision(revision),
                Some(("narHash", hash)) => !hash.is_empty(),
                _ => false,
            })
}

/// Settings of Nix's for this evaluation, in the order in which they are given.
fn options(request: &Request<'_>, restricted: bool) -> Vec<(String, String)> {
    let pure = request.is_pure();
    let word = |yes: bool| if yes { "true" } else { "false" };
    let mut options = vec![
        // What is imported from a derivation is built here or not at all: our machines belong to the queue.
        ("builders", ""),
        ("max-jobs", "1"),
        ("pure-eval", word(pure)),
        ("restrict-eval", word(restricted)),
        (
            "allow-import-from-derivation",
            word(request.settings.import_from_derivation),
        ),
    ];
    let features = match request.is_flake() {
        true => "nix-command flakes",
        false => "nix-command",
    };
    options.push(("extra-experimental-features", features));
    if request.is_flake() {
        options.push(("use-registries", "false"));
    }
    let ours = options
        .into_iter()
        .map(|(name, value)| (name.to_owned(), value.to_owned()));
    ours.chain(request.options.iter().cloned()).collect()
}

/// Says that a name cannot be a job's, as Hydra does.
fn skip(name: &str) {
    log::warn!("skipping job with illegal name '{name}'");
}

/// An entry of the search path as `-I` takes it.
fn search_entry(name: &str, path: &str) -> String {
    match name {
        "" => path.to_owned(),
        name => format!("{name}={path}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_have_no_passwords() {
        let flake = "git+https://alice:s3cr3t@h/r".to_owned();
        let error = EvalError::NotLocked { flake }.to_string();
        assert!(error.contains("'git+https://***@h/r'"), "{error}");
    }

    #[test]
    fn a_locked_flake_names_one_state() {
        let rev = "0123456789012345678901234567890123456789";
        for locked in [
            format!("github:NixOS/nixpkgs/{rev}"),
            format!("git+https://example.org/x?ref=main&rev={rev}"),
            "path:/x?narHash=sha256-AAAA".to_owned(),
        ] {
            assert!(is_locked(&locked), "{locked}");
        }
        for unlocked in [
            "github:NixOS/nixpkgs",
            "git+file:///x?ref=main",
            "path:/x",
            "",
            "/x?rev=main",
        ] {
            assert!(!is_locked(unlocked), "{unlocked}");
        }
    }
}
