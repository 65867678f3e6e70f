//! Stores that hydrad does not write itself (`ssh://`, `ssh-ng://`, another daemon, a store in a folder): everything goes
//! through the `nix` command, from and to the local store.
//!
//! Knows its options and the two forms of its JSON; every child has a deadline and can be ended, and what it says in an
//! error is kept whole. Does not know what the copies are for.

use std::collections::HashMap;
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use serde_json::Value;

use super::binary_cache::Gate;
use super::local::PathMeta;
use super::presence::{Known, Lifetimes, Presence};
use crate::sys::child::{self, describe_status};
use crate::sys::heartbeat::{self, Patience};
use crate::sys::kill::KillSwitch;

const PROGRAM: &str = "nix";
/// How long a question about paths may take.
const ANSWER_MAX: Duration = Duration::from_secs(300);
/// Paths in one command, far below what a command line may have.
const PATHS_MAX: usize = 500;

pub struct NixCopy {
    uri: String,
    presence: Presence,
    /// Copies at the same time.
    permits: Gate,
    copy_max: Duration,
}

/// Why the command did not do it.
pub enum Failure {
    Killed,
    Failed(String),
}

impl NixCopy {
    /// Asks the store once, so that one that cannot be used is told at the start.
    ///
    /// # Errors
    /// The command's words.
    pub fn open(
        uri: &str,
        lifetimes: Lifetimes,
        copies_max: usize,
        copy_max: Duration,
        nowhere: &str,
    ) -> Result<NixCopy, String> {
        let store = NixCopy {
            uri: uri.to_owned(),
            presence: Presence::new(lifetimes),
            permits: Gate::new(copies_max.max(1)),
            copy_max,
        };
        store.ask(&[nowhere])?;
        Ok(store)
    }

    pub fn uri(&self) -> &str {
        &self.uri
    }

    pub fn forget(&self, path: &str) {
        self.presence.forget(path);
    }

    /// What it has of these paths; from memory, as far as that may still be believed.
    ///
    /// # Errors
    /// When that cannot be found out.
    pub fn lookup_all(&self, paths: &[&str]) -> Result<HashMap<String, Arc<PathMeta>>, String> {
        let mut found = HashMap::with_capacity(paths.len());
        let mut unknown = Vec::new();
        for path in paths {
            match self.presence.get(path) {
                Some(Known::There(meta)) => drop(found.insert((*path).to_owned(), meta)),
                Some(Known::Absent | Known::Broken) => {}
                None => unknown.push(*path),
            }
        }
        for chunk in unknown.chunks(PATHS_MAX) {
            let told = self.ask(chunk)?;
            for path in chunk {
                match told.get(*path) {
                    Some(meta) => {
                        self.presence.put(path, Known::There(meta.clone()));
                        found.insert((*path).to_owned(), meta.clone());
                    }
                    None => self.presence.put(path, Known::Absent),
                }
            }
        }
        Ok(found)
    }

    fn ask(&self, paths: &[&str]) -> Result<HashMap<String, Arc<PathMeta>>, String> {
        let mut command = nix();
        command
            .args(["path-info", "--json", "--store", &self.uri])
            .args(paths);
        let answer = self
            .run(&mut command, "asking another store", ANSWER_MAX, None)
            .map_err(|failure| match failure {
                Failure::Killed => "interrupted".to_owned(),
                Failure::Failed(message) => message,
            })?;
        let json: Value = serde_json::from_slice(&answer)
            .map_err(|error| format!("`{PROGRAM} path-info --json` answers no JSON: {error}"))?;
        Ok(path_infos(&json))
    }

    /// Copies paths and all they refer to from the local store there.
    ///
    /// # Errors
    /// [`Failure`], with the command's words.
    pub fn send(&self, paths: &[&str], kill: &KillSwitch) -> Result<(), Failure> {
        let known = self.lookup_all(paths).map_err(Failure::Failed)?;
        let missing: Vec<&str> = paths
            .iter()
            .copied()
            .filter(|path| !known.contains_key(*path))
            .collect();
        if missing.is_empty() {
            return Ok(());
        }
        self.copy("--to", &missing, kill)?;
        for path in missing {
            self.presence.forget(path);
        }
        Ok(())
    }

    /// Copies paths and all they refer to from there into the local store.
    ///
    /// # Errors
    /// [`Failure`], with the command's words.
    pub fn fetch(&self, paths: &[&str], kill: &KillSwitch) -> Result<(), Failure> {
        if paths.is_empty() {
            return Ok(());
        }
        self.copy("--from", paths, kill).inspect_err(|_| {
            // Perhaps they are not there any more.
            self.presence.forget_all();
        })
    }

    fn copy(&self, way: &str, paths: &[&str], kill: &KillSwitch) -> Result<(), Failure> {
        let _permit = self.permits.enter(kill).ok_or(Failure::Killed)?;
        for chunk in paths.chunks(PATHS_MAX) {
            let mut command = nix();
            // hydrad's own user vouches for what the local store has; signatures are the other store's business.
            command
                .args(["copy", "--no-check-sigs", way, &self.uri])
                .args(chunk);
            self.run(&mut command, "copying with nix", self.copy_max, Some(kill))?;
        }
        Ok(())
    }

    fn run(
        &self,
        command: &mut Command,
        doing: &'static str,
        time_max: Duration,
        kill: Option<&KillSwitch>,
    ) -> Result<Vec<u8>, Failure> {
        let is_over = || kill.is_some_and(KillSwitch::is_thrown);
        let ended = heartbeat::during(doing, Patience::Deadline(time_max), || {
            child::capture(command, time_max, &is_over)
        })
        .map_err(|error| Failure::Failed(child::describe_trouble(PROGRAM, &error)))?;
        if is_over() {
            return Err(Failure::Killed);
        }
        let how = match ended.status {
            Some(status) if status.success() && !ended.late => return Ok(ended.output),
            _ if ended.late => format!("did not end within {} s", time_max.as_secs()),
            Some(status) => describe_status(status),
            None => "did not end".to_owned(),
        };
        let what = command.get_args().nth(2).unwrap_or_default();
        Err(Failure::Failed(format!(
            "`{PROGRAM} {}` with {} {how}: {}",
            what.to_string_lossy(),
            self.uri,
            ended.words
        )))
    }
}

/// The program, with the commands that are needed.
pub fn nix() -> Command {
    let mut command = Command::new(PROGRAM);
    command.args(["--extra-experimental-features", "nix-command"]);
    command
}

/// The valid ones: a list up to Nix 2.18, an object by path since.
fn path_infos(json: &Value) -> HashMap<String, Arc<PathMeta>> {
    let meta = |path: &str, info: &Value| {
        if info.is_null() || info["valid"] == false {
            return None;
        }
        let references: Vec<String> = info["references"]
            .as_array()
            .into_iter()
            .flatten()
            .filter_map(|reference| reference.as_str().map(str::to_owned))
            .collect();
        let meta = PathMeta::new(path, &references, info["narSize"].as_u64().unwrap_or(0));
        Some((path.to_owned(), Arc::new(meta)))
    };
    match json {
        Value::Array(infos) => infos
            .iter()
            .filter_map(|info| meta(info["path"].as_str()?, info))
            .collect(),
        Value::Object(infos) => infos
            .iter()
            .filter_map(|(path, info)| meta(path, info))
            .collect(),
        _ => HashMap::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn both_forms_of_an_answer_are_read() {
        let info = json!({"path": "/s/a", "narSize": 3, "references": ["/s/b"], "narHash": "x"});
        let old = path_infos(&json!([info, {"path": "/s/c", "valid": false}]));
        let new = path_infos(&json!({"/s/a": info, "/s/c": null}));
        assert_eq!(old, new);
        assert_eq!(old.len(), 1);
        assert_eq!(
            (old["/s/a"].nar_size, &*old["/s/a"].references[0]),
            (3, "/s/b")
        );
    }
}
