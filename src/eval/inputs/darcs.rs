//! `darcs`: `URI` of a repository.

use std::fs;
use std::process::Command;

use super::task::{remove, suspect, with_clone, CloneDir, Task, Trouble};
use super::value::{check_uri, is_ssh_short, shown, words, wrong};
use crate::db::input_cache::{Cached, Key};
use crate::eval::input::FetchedInput;

const SCHEMES: &[&str] = &["https", "http", "ssh", "file"];

pub fn fetch(task: &Task<'_>) -> Result<FetchedInput, Trouble> {
    let words = words(&task.spec.value)?;
    let [given] = words[..] else {
        return Err(wrong("expected the URI of a repository"));
    };
    if !is_ssh_short(given) {
        check_uri(given, SCHEMES, true)?;
    }
    // The clone's place is that of the whole address; darcs and the cache get it without file://.
    let uri = given.strip_prefix("file://").unwrap_or(given);
    let clone = task.clone_dir("darcs", given, task.time_max())?;
    with_clone(&clone, || update(task, &clone, uri))
}

fn darcs(task: &Task<'_>, args: &[&str]) -> Command {
    let mut command = task.program("darcs");
    command.args(args);
    command
}

fn update(task: &Task<'_>, clone: &CloneDir, uri: &str) -> Result<FetchedInput, Trouble> {
    let time_max = task.time_max();
    let there = clone.dir.exists();
    if there {
        let mut pull = darcs(task, &["pull", "--all", "--quiet", "--repodir"]);
        let pull = pull.arg(&clone.dir).args(["--", uri]);
        if let Err(Trouble::Failed(what)) = task.run(pull, time_max) {
            // Does the repository answer? Then it is the clone.
            let mut ask = darcs(task, &["log", "--last", "1", "--repo", uri]);
            return Err(match task.run(&mut ask, time_max) {
                Ok(_) => Trouble::Clone(what),
                Err(Trouble::Failed(_)) => Trouble::Failed(what),
                Err(other) => other,
            });
        }
    } else {
        let mut make = darcs(task, &["clone", "--lazy", "--quiet", "--", uri]);
        task.run(make.arg(&clone.dir), time_max)
            .inspect_err(|_| drop(fs::remove_dir_all(&clone.dir)))?;
    }
    let mut log = darcs(task, &["log", "--last", "1", "--xml", "--repodir"]);
    let said = task.run(log.arg(&clone.dir), time_max).map_err(|trouble| {
        if there {
            suspect(trouble)
        } else {
            trouble
        }
    })?;
    let hash = said
        .split_once("<patch")
        .and_then(|(_, patch)| patch.split_once(" hash='"))
        .and_then(|(_, rest)| rest.split('\'').next())
        .filter(|hash| !hash.is_empty() && hash.bytes().all(|b| b.is_ascii_hexdigit() || b == b'-'))
        .ok_or_else(|| Trouble::Failed(format!("there is no patch in {}", shown(uri))))?;
    let key = Key::Darcs {
        uri,
        revision: hash,
    };
    let cached = match task.cached(&key)? {
        Some(cached) => cached,
        None => {
            log::info!("checking out darcs repo {}", shown(uri));
            let cached = export(task, clone, hash)?;
            task.record(&key, &cached)?;
            cached
        }
    };
    let digits = |c: char| c.is_ascii_digit();
    Ok(FetchedInput {
        uri: Some(uri.to_owned()),
        rev_count: cached.rev_count.map(i64::from),
        short_rev: Some(hash.chars().take_while(|c| digits(*c)).collect()),
        revision: Some(hash.to_owned()),
        ..task.fetched(&cached)
    })
}

fn export(task: &Task<'_>, clone: &CloneDir, hash: &str) -> Result<Cached, Trouble> {
    let scratch = task.scratch()?;
    let tree = scratch.join("export");
    let until = format!("hash {hash}");
    let mut get = darcs(task, &["clone", "--lazy", "--quiet", "--to-match", &until]);
    get.arg("--").arg(&clone.dir).arg(&tree);
    task.run(&mut get, task.time_max()).map_err(suspect)?;
    let mut count = darcs(task, &["log", "--count", "--repodir"]);
    let count = task.run(count.arg(&tree), task.time_max())?;
    remove(&tree.join("_darcs"))?;
    Ok(Cached {
        rev_count: count.parse().ok(),
        ..task.enter(&tree, "export")?
    })
}
