//! `hydrad clear-failed`: forgets recorded failures, so that what failed is tried again when a build wants it.

use std::collections::HashSet;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{ensure, Result};
use serde_json::{json, Value};

use super::connect::StateArgs;
use super::table;
use crate::config::settings::parse_seconds;
use crate::db::operate::{self, FailedPath};
use crate::sys::clock::unix_now;

const APPLICATION_NAME: &str = "hydrad-clear-failed";

/// Forget recorded failures
///
/// What fails for good is recorded by its output paths, and whatever needs such an output fails at once from then on.
/// This forgets some of these records. It does not queue anything: builds that have ended stay so until they are
/// restarted (`hydrad build restart`, which forgets the failures it meets by itself) or evaluated anew.
#[derive(clap::Args, Debug)]
#[command(after_help = "Examples:
  hydrad clear-failed /nix/store/...-hello-2.12        one output
  hydrad clear-failed /nix/store/...-hello-2.12.drv    all outputs of a derivation
  hydrad clear-failed --older-than 30d --dry-run       what would be forgotten
  hydrad clear-failed --all")]
#[command(group = clap::ArgGroup::new("which").required(true).args(["paths", "all", "older_than"]))]
pub struct ClearFailedArgs {
    #[command(flatten)]
    pub state: StateArgs,
    /// Every recorded failure, also one whose age is not known
    #[arg(long)]
    pub all: bool,
    /// Failures of steps that ended at least this long ago (90, 15m, 12h, 30d); one whose step is not recorded any more has no
    /// age and stays
    #[arg(long, value_name = "AGE", value_parser = age)]
    pub older_than: Option<Duration>,
    /// Only say what would be forgotten
    #[arg(long)]
    pub dry_run: bool,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
    /// Store paths of outputs, or derivations
    #[arg(value_name = "PATH")]
    pub paths: Vec<String>,
}

pub fn age(text: &str) -> Result<Duration, String> {
    parse_seconds(text)
        .ok_or_else(|| "expected seconds, or a number with s, m, h or d behind it".to_owned())
}

/// # Errors
/// When nothing could be done.
pub fn run(args: &ClearFailedArgs) -> Result<ExitCode> {
    let settings = args.state.settings()?;
    let target = args.state.target(&settings)?;
    for path in &args.paths {
        ensure!(
            path.starts_with('/') && path.len() > 1,
            "`{path}` is not a store path; give the whole path, as `hydrad build show` prints it"
        );
    }
    let mut client = target.connect(APPLICATION_NAME)?;
    let mut named = Vec::new();
    for path in &args.paths {
        if path.ends_with(".drv") {
            let outputs = operate::outputs_of(&mut client, path)?;
            ensure!(
                !outputs.is_empty(),
                "no build or step of {path} is known, so its outputs are not either; give the output paths"
            );
            named.extend(outputs);
        } else {
            named.push(path.clone());
        }
    }
    let named = (!args.paths.is_empty()).then_some(named);
    let mut found = operate::failed_paths(&mut client, named.as_deref())?;
    let ageless = found.iter().filter(|path| path.failed_at.is_none()).count();
    if let Some(age) = args.older_than {
        let before = unix_now().saturating_sub(i64::try_from(age.as_secs()).unwrap_or(i64::MAX));
        found.retain(|path| path.failed_at.is_some_and(|at| at <= before));
    }
    if !args.dry_run {
        let paths: Vec<String> = found.iter().map(|path| path.path.clone()).collect();
        let gone: HashSet<String> = operate::forget_failures(&mut client, &paths)?
            .into_iter()
            .collect();
        // Somebody else may have forgotten some meanwhile.
        found.retain(|path| gone.contains(&path.path));
    }
    report(args, &found, ageless);
    let nothing_of_the_named = named.is_some() && found.is_empty();
    Ok(if nothing_of_the_named {
        ExitCode::FAILURE
    } else {
        ExitCode::SUCCESS
    })
}

fn report(args: &ClearFailedArgs, found: &[FailedPath], ageless: usize) {
    if args.json {
        let list: Vec<Value> = found
            .iter()
            .map(|path| json!({"path": path.path, "failedAt": path.failed_at}))
            .collect();
        println!("{}", json!({"dryRun": args.dry_run, "cleared": list}));
        return;
    }
    for path in found {
        let age = path.failed_at.map_or_else(
            || "no step of it is recorded".to_owned(),
            |at| format!("failed {} ago", table::duration((unix_now() - at).max(0))),
        );
        println!("{}  {age}", path.path);
    }
    let verb = if args.dry_run {
        "would be forgotten"
    } else {
        "forgotten"
    };
    println!("{} recorded failures {verb}", found.len());
    if args.older_than.is_some() && ageless > 0 {
        println!("{ageless} more have no age, since no step of theirs is recorded; --all forgets those too");
    }
}
