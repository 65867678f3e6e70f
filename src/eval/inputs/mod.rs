//! Inputs of evaluations, fetched into the local store: one file for each kind.
//!
//! | file | knows |
//! |---|---|
//! | `value` | what is common to values: words, addresses, and what may not be in them |
//! | `task` | one fetch: programs with a time limit, the clones' locks, the caches' rows, the way into the store |
//! | `scratch` | folders that are gone afterwards, also after a crash |
//! | `literal` | `string`, `boolean`, `nix` |
//! | `build` | `build`, `sysbuild`: outputs of earlier builds |
//! | `evaluation` | `eval`: all outputs of an earlier evaluation |
//! | `git`, `hg`, `svn`, `bzr`, `darcs` | repositories |
//! | `path` | `path`: a local file or folder, or a URL |
//! | `forge` | lists of pull requests and branches: `githubpulls`, `github_refs`, `gitlabpulls`, `bitbucketpulls`, `giteapulls`, `gitea_refs` |
//!
//! **Nothing that comes from outside is interpreted by a shell**: programs get their arguments one by one, values that could be
//! taken for options are refused, and git speaks only the protocols that Hydra's users know.
//!
//! **What was fetched stays** until the evaluation has registered what needs it: before a path becomes valid, or before a known one
//! is looked at, it gets a root in `gc_roots_dir`, and the store's daemon is told, so that a collection under way leaves it too.
//! The roots go with `hydrad update-gc-roots`, a day later; by then the derivations that refer to the path have theirs.

mod build;
mod bzr;
mod darcs;
mod evaluation;
mod forge;
mod git;
mod hg;
mod literal;
mod path;
mod scratch;
mod svn;
mod task;
mod value;

use std::path::PathBuf;
use std::sync::Arc;

use ureq::Agent;

use super::input::{FetchedInput, InputSpec};
use crate::config::inputs::InputSettings;
use crate::config::project::INPUT_KINDS;
use crate::config::Settings;
use crate::db::{DbError, Pool};
use crate::store::local::LocalStore;
use crate::store::roots::GcRoots;
use task::{Task, Trouble};
pub use value::{shown as shown_flake, without_secrets_of_flake};

/// Why an input could not be fetched. Its text is what people read on the jobset's page.
#[derive(Debug, thiserror::Error)]
pub enum FetchError {
    /// The blocks of hydra.conf, or the folders.
    #[error("inputs cannot be fetched: {0}")]
    Unusable(String),
    /// No such type.
    #[error("input ‘{input}’ has unknown type ‘{kind}’; there are {}", INPUT_KINDS.join(", "))]
    UnknownKind { input: String, kind: String },
    /// What is configured cannot be meant.
    #[error("input ‘{input}’ ({kind}): {what}")]
    Value {
        input: String,
        kind: String,
        what: String,
    },
    /// It was tried.
    #[error("cannot fetch input ‘{input}’ ({kind}): {what}")]
    Failed {
        input: String,
        kind: String,
        what: String,
    },
    /// Of our own database.
    #[error("cannot fetch input ‘{input}’: database: {cause}")]
    Database { input: String, cause: DbError },
    /// The program was told to stop.
    #[error("fetching input ‘{input}’ was interrupted")]
    Stopped { input: String },
}

/// Fetches inputs, one at a time for each caller; several may at once.
pub struct Fetcher {
    settings: InputSettings,
    /// Where clones are kept: `scm` in HYDRA_DATA.
    scm_dir: PathBuf,
    pool: Pool,
    store: Arc<LocalStore>,
    roots: GcRoots,
    agent: Agent,
    stopping: Box<dyn Fn() -> bool + Send + Sync>,
}

impl Fetcher {
    /// Takes away what fetches left that were killed. `stopping` ends what is under way.
    ///
    /// # Errors
    /// What is wrong with hydra.conf's blocks or the folders.
    pub fn new(
        settings: &Settings,
        pool: Pool,
        store: Arc<LocalStore>,
        stopping: impl Fn() -> bool + Send + Sync + 'static,
    ) -> Result<Fetcher, FetchError> {
        if let Some(error) = settings.inputs.errors.first() {
            return Err(FetchError::Unusable(error.to_string()));
        }
        let roots = GcRoots::open(&settings.gc_roots_dir).map_err(|error| {
            let dir = settings.gc_roots_dir.display();
            FetchError::Unusable(format!("cannot use {dir} (gc_roots_dir): {error}"))
        })?;
        let scm_dir = settings.data_dir.join("scm");
        scratch::sweep(&scm_dir).map_err(|error| {
            FetchError::Unusable(format!("cannot use {}: {error}", scm_dir.display()))
        })?;
        Ok(Fetcher {
            settings: settings.inputs.clone(),
            scm_dir,
            pool,
            store,
            roots,
            agent: crate::web::client::agent(),
            stopping: Box::new(stopping),
        })
    }

    /// Fetches an input as it is now. `None`: it names a build that is not there (yet).
    ///
    /// # Errors
    /// [`FetchError`]; nothing of it is left then but a clone for the next time.
    pub fn fetch(
        &self,
        project: &str,
        jobset: &str,
        spec: &InputSpec,
    ) -> Result<Option<FetchedInput>, FetchError> {
        log::info!(
            "({project}:{jobset}) Fetching input {} ({}) {}",
            spec.name,
            spec.kind,
            value::shown(&spec.value)
        );
        let task = Task::new(self, project, jobset, spec);
        let fetched = match spec.kind.as_str() {
            "string" | "boolean" | "nix" => literal::fetch(&task).map(Some),
            "build" => build::fetch(&task),
            "sysbuild" => build::fetch_by_system(&task),
            "eval" => evaluation::fetch(&task).map(Some),
            "git" => git::fetch(&task).map(Some),
            "hg" => hg::fetch(&task).map(Some),
            "svn" => svn::fetch(&task, svn::Form::Export).map(Some),
            "svn-checkout" => svn::fetch(&task, svn::Form::Checkout).map(Some),
            "bzr" => bzr::fetch(&task, bzr::Form::Export).map(Some),
            "bzr-checkout" => bzr::fetch(&task, bzr::Form::Checkout).map(Some),
            "darcs" => darcs::fetch(&task).map(Some),
            "path" => path::fetch(&task).map(Some),
            "githubpulls" => forge::github_pulls(&task).map(Some),
            "github_refs" => forge::github_refs(&task).map(Some),
            "gitlabpulls" => forge::gitlab_pulls(&task).map(Some),
            "bitbucketpulls" => forge::bitbucket_pulls(&task).map(Some),
            "giteapulls" => forge::gitea_pulls(&task).map(Some),
            "gitea_refs" => forge::gitea_refs(&task).map(Some),
            _ => {
                return Err(FetchError::UnknownKind {
                    input: spec.name.clone(),
                    kind: spec.kind.clone(),
                })
            }
        };
        let (input, kind) = (spec.name.clone(), spec.kind.clone());
        fetched.map_err(|trouble| match trouble {
            Trouble::Wrong(what) => FetchError::Value {
                input,
                kind,
                what: task.without_secrets(&what),
            },
            Trouble::Failed(what) | Trouble::Clone(what) => FetchError::Failed {
                input,
                kind,
                what: task.without_secrets(&what),
            },
            Trouble::Database(cause) => FetchError::Database { input, cause },
            Trouble::Stopped => FetchError::Stopped { input },
        })
    }
}
