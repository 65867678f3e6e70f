//! `svn` and `svn-checkout`: `URI [REVISION]`; the second with `.svn`. A working copy is kept and brought up to date.

use std::fs;
use std::process::Command;

use super::task::{file, remove, suspect, with_clone, Task, Trouble};
use super::value::{check_uri, shown, words, wrong};
use crate::db::input_cache::Key;
use crate::eval::input::FetchedInput;
use crate::nix::store_path::name_part;

const SCHEMES: &[&str] = &["https", "http", "svn", "svn+ssh", "file"];

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Form {
    Export,
    Checkout,
}

fn svn(task: &Task<'_>) -> Command {
    let mut command = task.program("svn");
    command.arg("--non-interactive");
    command
}

pub fn fetch(task: &Task<'_>, form: Form) -> Result<FetchedInput, Trouble> {
    let words = words(&task.spec.value)?;
    let (uri, given) = match words[..] {
        [uri] => (uri, None),
        [uri, revision] => (uri, Some(revision)),
        _ => return Err(wrong("expected `URI [REVISION]`")),
    };
    check_uri(uri, SCHEMES, false)?;
    let number = |text: &str| text.parse::<i32>().ok().filter(|number| *number >= 0);
    let revision = match given {
        Some(text) => {
            number(text).ok_or_else(|| wrong(format!("`{text}` is no number of a revision")))?
        }
        None => {
            let mut ask = svn(task);
            ask.args(["info", "--show-item", "last-changed-revision", uri]);
            let said = task.run(&mut ask, task.time_max())?;
            number(&said).ok_or_else(|| {
                Trouble::Failed(format!(
                    "svn says that {} is at ‘{}’",
                    shown(uri),
                    task.shown(&said)
                ))
            })?
        }
    };
    let (name, cache_uri) = match form {
        Form::Export => ("source", uri.to_owned()),
        // No row of Hydra's has an address with a blank in it. (Hydra mixes the two forms up.)
        Form::Checkout => ("svn-checkout", format!("{uri} checkout")),
    };
    let key = Key::Subversion {
        uri: &cache_uri,
        revision,
    };
    let cached = task.cached(&key)?;
    let cached = match cached.filter(|cached| name_part(&cached.store_path) == name) {
        Some(cached) => cached,
        None => {
            let clone = task.clone_dir("svn", uri, task.time_max())?;
            let cached = with_clone(&clone, || {
                let copy = clone.dir.join("svn-checkout");
                log::info!(
                    "checking out Subversion input {} from {} revision {revision}",
                    task.spec.name,
                    shown(uri)
                );
                update(task, uri, revision, &copy)?;
                if form == Form::Checkout {
                    return task.enter(&copy, name);
                }
                let scratch = task.scratch()?;
                let tree = scratch.join(name);
                let mut export = svn(task);
                export.args(["export", "--quiet"]).arg(&copy).arg(&tree);
                task.run(&mut export, task.time_max()).map_err(suspect)?;
                task.enter(&tree, name)
            })?;
            task.record(&key, &cached)?;
            cached
        }
    };
    Ok(FetchedInput {
        uri: Some(uri.to_owned()),
        rev_number: Some(i64::from(revision)),
        ..task.fetched(&cached)
    })
}

/// Brings the working copy to a revision; a broken one is made anew.
fn update(
    task: &Task<'_>,
    uri: &str,
    revision: i32,
    copy: &std::path::Path,
) -> Result<(), Trouble> {
    let there = copy.exists();
    if there {
        // Locks of processes that were killed. If that fails so does what follows.
        let mut cleanup = svn(task);
        let _ = task.run_any(
            cleanup.args(["cleanup", "--quiet"]).arg(copy),
            task.time_max(),
        )?;
    } else if let Some(folder) = copy.parent() {
        fs::create_dir_all(folder).map_err(|error| file("make", folder, &error))?;
    }
    let mut checkout = svn(task);
    checkout.args([
        "checkout",
        "--quiet",
        "--revision",
        &revision.to_string(),
        uri,
    ]);
    match task.run(checkout.arg(copy), task.time_max()) {
        Err(Trouble::Failed(what)) if there => Err(Trouble::Clone(what)),
        Err(trouble) => {
            remove(copy)?;
            Err(trouble)
        }
        Ok(_) => Ok(()),
    }
}
