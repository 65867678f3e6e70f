//! `hydrad cache`: what an operator can do about the binary cache of a running queue runner.

use std::process::ExitCode;

use anyhow::{bail, Context as _, Result};

use super::connect::StateArgs;
use super::explain::ask;
use crate::nix::store_path::check_store_path;
use crate::nix::StoreDir;
use crate::queue::forget::{question, PATHS_MAX};

/// The binary cache that outputs go to
#[derive(clap::Args, Debug)]
pub struct CacheArgs {
    #[command(subcommand)]
    pub command: CacheCommand,
}

#[derive(clap::Subcommand, Debug)]
pub enum CacheCommand {
    Forget(ForgetArgs),
}

/// Have the running queue runner forget what it remembers of its binary cache
///
/// For after something was put there or removed by others: hydrad asks the cache again instead of
/// believing what it found for narinfo-cache-positive-ttl, or did not find for
/// narinfo-cache-negative-ttl. (What turns out to be missing when it is used is forgotten by itself.)
///
///   hydrad cache forget /nix/store/HASH-hello-2.12
///   hydrad cache forget --all
#[derive(clap::Args, Debug)]
#[command(verbatim_doc_comment)]
pub struct ForgetArgs {
    #[command(flatten)]
    pub state: StateArgs,
    /// Store paths
    #[arg(value_name = "PATH", required_unless_present = "all")]
    pub paths: Vec<String>,
    /// All of them
    #[arg(long, conflicts_with = "paths")]
    pub all: bool,
    /// Print JSON: place, forgotten, remembered
    #[arg(long)]
    pub json: bool,
}

/// # Errors
/// When the queue runner cannot be asked, or has no binary cache.
pub fn run(args: &CacheArgs) -> Result<ExitCode> {
    match &args.command {
        CacheCommand::Forget(args) => forget(args),
    }
}

fn forget(args: &ForgetArgs) -> Result<ExitCode> {
    if args.paths.len() > PATHS_MAX {
        bail!("these are more than {PATHS_MAX} paths; --all forgets them too");
    }
    for path in &args.paths {
        let dir = path.rsplit_once('/').map_or("", |(dir, _)| dir);
        check_store_path(&StoreDir(dir.to_owned()), path).with_context(|| {
            format!(
                "'{path}': write a whole store path, /nix/store/HASH-NAME, and nothing behind it"
            )
        })?;
    }
    let settings = args.state.settings()?;
    let target = args.state.target(&settings)?;
    let mut client = target.connect("hydrad-cache")?;
    let answer = match ask(&target, &mut client, &question(&args.paths)) {
        (Some(answer), _) => answer,
        (None, why) => bail!(
            "{}; if no queue runner is running there is nothing to forget",
            why.unwrap_or_default()
        ),
    };
    if let Some(why) = answer["refused"].as_str() {
        bail!("{why}");
    }
    if args.json {
        println!("{answer}");
    } else {
        println!(
            "{} of {}: forgotten; still remembered: {}",
            answer["forgotten"],
            answer["place"].as_str().unwrap_or("the binary cache"),
            answer["remembered"]
        );
    }
    Ok(ExitCode::SUCCESS)
}
