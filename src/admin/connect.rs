//! What every command needs first: the settings and the database, by environment or by `--state DIR`.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};

use crate::config::settings::{Override, Settings};
use crate::db::connect::{self, DbTarget};
use crate::db::embedded::Embedded;
use crate::sys::access::may_write;

/// `--state DIR`, common to the commands that need the database.
#[derive(clap::Args, Clone, Debug, Default)]
pub struct StateArgs {
    /// Keep everything in DIR: a private PostgreSQL, logs, GC roots. Not together with a configured database.
    #[arg(long, value_name = "DIR")]
    pub state: Option<PathBuf>,
}

/// The process's environment, in the form the settings are read with.
pub fn environment(name: &str) -> Option<String> {
    std::env::var(name).ok()
}

impl StateArgs {
    /// The settings; with `--state` that folder is HYDRA_DATA and its GC roots are inside.
    ///
    /// # Errors
    /// Of hydra.conf or the environment.
    pub fn settings(&self) -> Result<Settings> {
        Ok(Settings::load(&environment, &self.overrides()?)?)
    }

    /// What `--state` says of the settings.
    ///
    /// # Errors
    /// When the folder's path cannot be used.
    pub fn overrides(&self) -> Result<Vec<Override>> {
        let mut overrides = Vec::new();
        if let Some(dir) = &self.state {
            let dir = absolute(dir)?;
            let option = format!("--state {}", dir.display());
            let value = |path: &Path| path.display().to_string();
            overrides.push(Override {
                key: "data_dir",
                value: value(&dir),
                option: option.clone(),
            });
            // Nix looks for roots below its own state folder alone; where we may not write there (the roots of a
            // multi-user installation are made per user by its administrator), a folder of ours is better than no
            // start, and `run` and `check` say what it lacks.
            let configured =
                std::env::var_os("HYDRA_CONFIG").is_some() || dir.join("hydra.conf").exists();
            let usual = Settings::load(&environment, &overrides).map(|s| s.gc_roots_dir);
            if !configured && !usual.is_ok_and(|usual| is_makeable(&usual)) {
                overrides.push(Override {
                    key: "gc_roots_dir",
                    value: value(&dir.join("gcroots")),
                    option,
                });
            }
        }
        Ok(overrides)
    }

    /// Where the database is; with `--state`, that of the running `hydrad run --state DIR`.
    ///
    /// # Errors
    /// When two databases are named, or none can be found.
    pub fn target(&self, settings: &Settings) -> Result<DbTarget> {
        match &self.state {
            None => Ok(DbTarget::from_env(&environment, settings)?),
            Some(dir) => {
                connect::refuse_two_databases(&environment, settings)?;
                let dir = absolute(dir)?;
                Embedded::running(&dir)?.with_context(|| {
                    format!(
                        "no hydrad works in {0}; start it with `hydrad run --state {0}`",
                        dir.display()
                    )
                })
            }
        }
    }
}

/// Whether a folder exists and can be written, or can be made.
fn is_makeable(folder: &Path) -> bool {
    let nearest = folder.ancestors().find(|ancestor| ancestor.exists());
    nearest.is_some_and(may_write)
}

/// Whether the garbage collector finds roots in this folder.
pub fn is_seen_by_collector(folder: &Path) -> bool {
    let state = environment("NIX_STATE_DIR").filter(|state| !state.is_empty());
    let roots = PathBuf::from(state.unwrap_or_else(|| "/nix/var/nix".into())).join("gcroots");
    let real = |path: &Path| std::fs::canonicalize(path).unwrap_or_else(|_| path.to_owned());
    real(folder).starts_with(real(&roots))
}

/// The folder as an absolute path; it need not exist.
pub fn absolute(dir: &Path) -> Result<PathBuf> {
    std::path::absolute(dir).with_context(|| format!("{}: not a usable path", dir.display()))
}
