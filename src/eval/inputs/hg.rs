//! `hg`: `URI [ID]`, `ID` being a branch, a tag, a bookmark, a commit or whatever else Mercurial understands as a revision.

use std::fs;
use std::process::Command;

use super::task::{file, suspect, with_clone, CloneDir, Task, Trouble};
use super::value::{check_uri, shown, words, wrong};
use crate::db::input_cache::Key;
use crate::eval::input::FetchedInput;

const SCHEMES: &[&str] = &["https", "http", "ssh", "file"];

pub fn fetch(task: &Task<'_>) -> Result<FetchedInput, Trouble> {
    let words = words(&task.spec.value)?;
    let (uri, id) = match words[..] {
        [uri] => (uri, "default"),
        [uri, id] => (uri, id),
        _ => return Err(wrong("expected `URI [REVISION]`")),
    };
    check_uri(uri, SCHEMES, true)?;
    let clone = task.clone_dir("hg", uri, task.time_max())?;
    with_clone(&clone, || update(task, &clone, uri, id))
}

/// Mercurial without what people like to see, and without options in odd places.
fn hg(task: &Task<'_>) -> Command {
    let mut command = task.program("hg");
    command
        .env("HGPLAIN", "+strictflags")
        .args(["--noninteractive", "--quiet"]);
    command
}

fn update(task: &Task<'_>, clone: &CloneDir, uri: &str, id: &str) -> Result<FetchedInput, Trouble> {
    let time_max = task.time_max();
    let here = || {
        let mut command = hg(task);
        command.arg("--cwd").arg(&clone.dir);
        command
    };
    if clone.dir.exists() {
        let mut pull = here();
        pull.args(["pull", "--", uri]);
        if let Err(Trouble::Failed(what)) = task.run(&mut pull, time_max) {
            // Does the repository answer? Then it is the clone.
            let mut ask = hg(task);
            ask.args(["identify", "--id", "--", uri]);
            return Err(match task.run(&mut ask, time_max) {
                Ok(_) => Trouble::Clone(what),
                Err(Trouble::Failed(_)) => Trouble::Failed(what),
                Err(other) => other,
            });
        }
    } else {
        let mut make = hg(task);
        make.args(["clone", "--noupdate", "--", uri]);
        task.run(make.arg(&clone.dir), time_max)
            .inspect_err(|_| drop(fs::remove_dir_all(&clone.dir)))?;
    }
    let mut log = here();
    log.args(["log", "--limit", "1", "--rev", id]);
    log.args(["--template", "{node} {rev} {branch}\n"]);
    let said = task.run(&mut log, time_max)?;
    let mut parts = said.splitn(3, ' ');
    let (Some(node), Some(count), Some(branch)) = (parts.next(), parts.next(), parts.next()) else {
        return Err(Trouble::Failed(format!(
            "there is no revision ‘{id}’ in {}",
            shown(uri)
        )));
    };
    let key = Key::Hg {
        uri,
        branch,
        revision: node,
    };
    let cached = match task.cached(&key)? {
        Some(cached) => cached,
        None => {
            log::info!(
                "checking out Mercurial input from {} {branch} revision {node}",
                shown(uri)
            );
            let scratch = task.scratch()?;
            // Its name is that which nix-prefetch-hg gives.
            let tree = scratch.join("hg-archive");
            let mut archive = here();
            archive.args(["archive", "--type", "files", "--rev", node, "--"]);
            task.run(archive.arg(&tree), time_max).map_err(suspect)?;
            let told = tree.join(".hg_archival.txt");
            if told.exists() {
                fs::remove_file(&told).map_err(|error| file("remove", &told, &error))?;
            }
            let cached = task.enter(&tree, "hg-archive")?;
            task.record(&key, &cached)?;
            cached
        }
    };
    Ok(FetchedInput {
        uri: Some(uri.to_owned()),
        revision: Some(node.to_owned()),
        rev_count: count.parse().ok(),
        ..task.fetched(&cached)
    })
}
