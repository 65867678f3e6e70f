//! One fetch, as every kind needs it: programs with a time limit, the lock of a clone, the caches' rows, the way into the store.
//! Does not know what a kind's value means.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use super::scratch::Scratch;
use super::{value, Fetcher};
use crate::base::text;
use crate::db::input_cache::{self, Cached, Key};
use crate::db::{DbError, PooledConn};
use crate::eval::input::{FetchedInput, InputSpec};
use crate::nix::hash::{hex_encode, nix32_encode, sha256};
use crate::store::roots::GcRoots;
use crate::sys::child::{self, describe_status, plain_error, Captured};
use crate::sys::lockfile::LockFile;

/// Of a program's words so much is shown, bytes; the end of them.
const WORDS_BYTES_MAX: usize = 8_192;
/// A connection to the database must be had within this time.
const CONNECTION_MAX: Duration = Duration::from_secs(60);
/// Whoever holds a clone's lock runs no more programs than this, one after the other.
const PROGRAMS_MAX: u32 = 6;

/// Why something was not fetched.
#[derive(Debug)]
pub enum Trouble {
    /// The value cannot be meant.
    Wrong(String),
    Failed(String),
    /// The repository answers, but the clone of it cannot be used: it is made anew, once.
    Clone(String),
    Database(DbError),
    Stopped,
}

impl From<DbError> for Trouble {
    fn from(error: DbError) -> Trouble {
        Trouble::Database(error)
    }
}

/// One fetch.
pub struct Task<'a> {
    pub fetcher: &'a Fetcher,
    pub project: &'a str,
    pub jobset: &'a str,
    pub spec: &'a InputSpec,
    secrets: Vec<String>,
}

/// The place of a clone, which nobody else has.
pub struct CloneDir {
    pub dir: PathBuf,
    _lock: LockFile,
}

impl<'a> Task<'a> {
    pub fn new(
        fetcher: &'a Fetcher,
        project: &'a str,
        jobset: &'a str,
        spec: &'a InputSpec,
    ) -> Task<'a> {
        Task {
            fetcher,
            project,
            jobset,
            spec,
            secrets: value::secrets(&spec.value),
        }
    }

    /// The usual limit of a program.
    pub fn time_max(&self) -> Duration {
        self.fetcher.settings.time_max
    }

    pub fn is_stopping(&self) -> bool {
        (self.fetcher.stopping)()
    }

    pub fn conn(&self) -> Result<PooledConn, Trouble> {
        Ok(self.fetcher.pool.get(CONNECTION_MAX)?)
    }

    /// A program that speaks English, asks nobody anything and ends with us.
    pub fn program(&self, name: &str) -> Command {
        let mut command = Command::new(name);
        command
            .env("LC_ALL", "C.UTF-8")
            .env_remove("LANGUAGE")
            .current_dir(&self.fetcher.scm_dir);
        child::ends_with_thread(&mut command);
        command
    }

    /// Runs a program to its end, whatever that is.
    pub fn run_any(&self, command: &mut Command, time_max: Duration) -> Result<Captured, Trouble> {
        let name = command.get_program().to_string_lossy().into_owned();
        let ended = child::capture(command, time_max, &|| self.is_stopping()).map_err(|error| {
            let hint = match error.kind() {
                io::ErrorKind::NotFound => "; install it, or put it into the PATH of hydrad",
                _ => "",
            };
            Trouble::Failed(child::describe_trouble(&name, &error) + hint)
        })?;
        if self.is_stopping() {
            return Err(Trouble::Stopped);
        }
        if ended.late {
            let words = self.shown(&ended.words);
            let words = if words.is_empty() {
                String::new()
            } else {
                format!(":\n{words}")
            };
            return Err(Trouble::Failed(format!(
                "`{}` had to be ended after {} s (`timeout` in <git-input> for git, `input_timeout` for others){words}",
                self.shown(&line(command)),
                time_max.as_secs()
            )));
        }
        Ok(ended)
    }

    /// Runs a program that has to succeed; what it wrote.
    pub fn run(&self, command: &mut Command, time_max: Duration) -> Result<String, Trouble> {
        let ended = self.run_any(command, time_max)?;
        match ended.status {
            Some(status) if status.success() => {
                Ok(String::from_utf8_lossy(&ended.output).trim().to_owned())
            }
            _ => Err(Trouble::Failed(self.complaint(command, &ended))),
        }
    }

    /// What to say of a program that failed.
    pub fn complaint(&self, command: &Command, ended: &Captured) -> String {
        let status = ended.status.map_or("no status".to_owned(), describe_status);
        let words = match ended.words.is_empty() {
            true => "(it said nothing)".to_owned(),
            false => self.shown(&ended.words),
        };
        format!(
            "`{}` ended with {status}:\n{words}",
            self.shown(&line(command))
        )
    }

    /// Text fit for people: without secrets, the end of it if it is long.
    pub fn shown(&self, text: &str) -> String {
        let mut from = text.len().saturating_sub(WORDS_BYTES_MAX);
        while !text.is_char_boundary(from) {
            from += 1;
        }
        let plain = text::presentable(&text.as_bytes()[from..], WORDS_BYTES_MAX);
        self.without_secrets(plain.trim())
    }

    /// Text without what in the value nobody should see.
    pub fn without_secrets(&self, text: &str) -> String {
        value::without(text, &self.secrets)
    }

    /// Where the clone of a repository is; waits for whoever else uses it, whose programs have this limit too.
    pub fn clone_dir(
        &self,
        kind: &str,
        uri: &str,
        time_max: Duration,
    ) -> Result<CloneDir, Trouble> {
        let name = hex_encode(&sha256(uri.as_bytes()));
        let dir = self.fetcher.scm_dir.join(kind).join(&name);
        let path = dir.with_file_name(format!("{name}.lock"));
        let wait_max = time_max * PROGRAMS_MAX;
        let lock = LockFile::take_within(&path, wait_max, &|| self.is_stopping())
            .map_err(|error| file("lock", &path, &error))?;
        match lock {
            Some(lock) => Ok(CloneDir { dir, _lock: lock }),
            None if self.is_stopping() => Err(Trouble::Stopped),
            None => Err(Trouble::Failed(format!(
                "another fetch of this repository holds {} for more than {} s",
                path.display(),
                wait_max.as_secs()
            ))),
        }
    }

    pub fn scratch(&self) -> Result<Scratch, Trouble> {
        let scm_dir = &self.fetcher.scm_dir;
        Scratch::new(scm_dir).map_err(|error| file("make a folder in", scm_dir, &error))
    }

    /// What the cache has of a revision, if that is still in the store; it stays there then.
    pub fn cached(&self, key: &Key<'_>) -> Result<Option<Cached>, Trouble> {
        let cached = input_cache::find(&mut *self.conn()?, key)?;
        match cached {
            Some(cached) if self.hold(&cached.store_path)? => Ok(Some(cached)),
            _ => Ok(None),
        }
    }

    /// Puts a tree or file into the store; it stays there. The caches' row is made with [`Task::record`].
    pub fn enter(&self, tree: &Path, name: &str) -> Result<Cached, Trouble> {
        let roots = &self.fetcher.roots;
        let info = self
            .fetcher
            .store
            .add_source(tree, name, |path| roots.add(path))
            .map_err(Trouble::Failed)?;
        Ok(Cached {
            store_path: info.path,
            sha256: nix32_encode(&info.nar_hash),
            rev_count: None,
        })
    }

    pub fn record(&self, key: &Key<'_>, at: &Cached) -> Result<(), Trouble> {
        Ok(input_cache::record(&mut *self.conn()?, key, at)?)
    }

    /// Whether a path is valid; if so it stays.
    pub fn hold(&self, path: &str) -> Result<bool, Trouble> {
        if crate::nix::store_path::check_store_path(self.fetcher.store.dir(), path).is_err() {
            return Ok(false); // of another store
        }
        if fs::symlink_metadata(path).is_err() {
            return Ok(false);
        }
        root(&self.fetcher.roots, path)?;
        self.fetcher.store.hold(path).map_err(Trouble::Failed)
    }

    /// What is common to all that was fetched into the store.
    pub fn fetched(&self, at: &Cached) -> FetchedInput {
        FetchedInput {
            store_path: Some(at.store_path.clone()),
            sha256: Some(at.sha256.clone()),
            ..self.bare()
        }
    }

    /// What is common to all inputs.
    pub fn bare(&self) -> FetchedInput {
        FetchedInput {
            name: self.spec.name.clone(),
            kind: self.spec.kind.clone(),
            email_responsible: self.spec.email_responsible,
            ..FetchedInput::default()
        }
    }
}

/// Does something with a clone, and once more with a new one if the clone turns out to be broken.
pub fn with_clone<T>(
    clone: &CloneDir,
    mut attempt: impl FnMut() -> Result<T, Trouble>,
) -> Result<T, Trouble> {
    match attempt() {
        Err(Trouble::Clone(what)) => {
            log::warn!("{} is made anew: {what}", clone.dir.display());
            remove(&clone.dir)?;
            attempt()
        }
        result => result,
    }
}

/// Removes a folder, if it is there.
pub fn remove(dir: &Path) -> Result<(), Trouble> {
    match fs::remove_dir_all(dir) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(file("remove", dir, &error)),
        _ => Ok(()),
    }
}

pub fn file(doing: &str, path: &Path, error: &io::Error) -> Trouble {
    Trouble::Failed(format!(
        "cannot {doing} {}: {}",
        path.display(),
        plain_error(error)
    ))
}

/// A failure that a new clone may mend.
pub fn suspect(trouble: Trouble) -> Trouble {
    match trouble {
        Trouble::Failed(what) => Trouble::Clone(what),
        other => other,
    }
}

fn root(roots: &GcRoots, path: &str) -> Result<(), Trouble> {
    roots
        .add(path)
        .map_err(|error| file("make a GC root in", roots.dir(), &error))
}

/// A command as people write it: what is of interest, not how git is kept from asking questions.
fn line(command: &Command) -> String {
    let mut words = vec![command.get_program().to_string_lossy()];
    let mut args = command.get_args().map(|arg| arg.to_string_lossy());
    while let Some(arg) = args.next() {
        match arg.as_ref() {
            "-c" => drop(args.next()),
            _ => words.push(arg),
        }
    }
    words.join(" ")
}
