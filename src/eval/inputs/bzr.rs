//! `bzr` and `bzr-checkout`: `URI` of a Bazaar branch; the second with `.bzr`. The program is `bzr` or, where there is none,
//! Breezy's `brz`. Nothing is kept between fetches: it is the server that is asked for a revision.

use std::env;
use std::process::Command;

use super::task::{Task, Trouble};
use super::value::{check_uri, shown, words, wrong};
use crate::db::input_cache::Key;
use crate::eval::input::FetchedInput;

const SCHEMES: &[&str] = &["https", "http", "bzr", "bzr+ssh", "sftp", "file"];

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Form {
    Export,
    Checkout,
}

fn bzr(task: &Task<'_>) -> Command {
    let path = env::var_os("PATH").unwrap_or_default();
    let has_bzr = env::split_paths(&path).any(|folder| folder.join("bzr").is_file());
    let mut command = task.program(if has_bzr { "bzr" } else { "brz" });
    // It would write a log into a home that the service may not have.
    command
        .env("BRZ_LOG", "/dev/null")
        .env("BZR_LOG", "/dev/null");
    command
}

pub fn fetch(task: &Task<'_>, form: Form) -> Result<FetchedInput, Trouble> {
    let words = words(&task.spec.value)?;
    let [uri] = words[..] else {
        return Err(wrong("expected the URI of a branch"));
    };
    check_uri(uri, SCHEMES, true)?;
    let said = task.run(bzr(task).args(["revno", "--", uri]), task.time_max())?;
    let digits = said.split(|c: char| !c.is_ascii_digit()).next();
    let revision: i32 = digits
        .and_then(|digits| digits.parse().ok())
        .ok_or_else(|| {
            Trouble::Failed(format!(
                "{} says that it is at ‘{}’",
                shown(uri),
                task.shown(&said)
            ))
        })?;
    // Names as nix-prefetch-bzr's; no row of Hydra's has an address with a blank in it.
    let (name, cache_uri) = match form {
        Form::Export => ("bzr-export", uri.to_owned()),
        Form::Checkout => ("bzr-checkout", format!("{uri} checkout")),
    };
    let key = Key::Bazaar {
        uri: &cache_uri,
        revision,
    };
    let cached = match task.cached(&key)? {
        Some(cached) => cached,
        None => {
            log::info!(
                "checking out Bazaar input {} from {} revision {revision}",
                task.spec.name,
                shown(uri)
            );
            let scratch = task.scratch()?;
            let tree = scratch.join(name);
            let (mut command, number) = (bzr(task), revision.to_string());
            match form {
                Form::Export => command
                    .args(["export", "--quiet", "--format=dir", "--revision", &number])
                    .arg("--")
                    .arg(&tree)
                    .arg(uri),
                Form::Checkout => command
                    .args(["branch", "--quiet", "--revision", &number, "--", uri])
                    .arg(&tree),
            };
            task.run(&mut command, task.time_max())?;
            let cached = task.enter(&tree, name)?;
            task.record(&key, &cached)?;
            cached
        }
    };
    Ok(FetchedInput {
        uri: Some(uri.to_owned()),
        revision: Some(revision.to_string()),
        ..task.fetched(&cached)
    })
}
