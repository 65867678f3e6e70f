//! `hydrad log`: the build log of a build or derivation, any attempt of it, also while it grows.

use std::fs::{File, Metadata};
use std::io::{self, Read, Seek, Write};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};
use std::time::Duration;

use anyhow::{bail, ensure, Context as _, Result};

use super::connect::{environment, StateArgs};
use crate::db::connect::DbTarget;
use crate::store::local::LocalStore;
use crate::store::logs::LogStore;

/// How often a growing log is looked at.
const LOOK_EVERY: Duration = Duration::from_millis(300);

/// Print the log of a build or derivation
///
/// BUILD is a number; its top-level derivation's log is shown, or that of the step that failed. DRV is a derivation's
/// path or base name. Every attempt's log is kept: --attempts lists them, --attempt N shows one.
#[derive(clap::Args, Debug)]
pub struct LogArgs {
    #[command(flatten)]
    pub state: StateArgs,
    /// A build's number, or a derivation
    #[arg(value_name = "BUILD|DRV")]
    pub what: String,
    /// Show this attempt instead of the last
    #[arg(long, value_name = "N")]
    pub attempt: Option<u32>,
    /// List the attempts and where their logs are
    #[arg(long, conflicts_with_all = ["attempt", "follow"])]
    pub attempts: bool,
    /// Go on as the log grows, until the step has ended
    #[arg(long, short, conflicts_with = "attempt")]
    pub follow: bool,
}

/// # Errors
/// When there is no such build, derivation, log or attempt.
pub fn run(args: &LogArgs) -> Result<ExitCode> {
    let settings = args.state.settings()?;
    let logs = LogStore::reader(&settings.data_dir);
    let mut target = None;
    let drv = match args.what.parse::<i32>() {
        Ok(build) => {
            let found = args.state.target(&settings)?;
            let drv = drv_of_build(&found, build)?;
            target = Some(found);
            drv
        }
        Err(_) if args.what.contains('/') => args.what.clone(),
        // A base name: the store it lies in is the one Nix would use here.
        Err(_) => LocalStore::from_env(&environment, &settings.nix_daemon_program)
            .dir()
            .join(&args.what),
    };
    ensure!(
        drv.trim_end_matches('/').ends_with(".drv"),
        "'{}' is neither a build's number nor a derivation (….drv)",
        args.what
    );
    let attempts = logs
        .attempts(&drv)
        .with_context(|| format!("cannot look for logs of {drv}"))?;
    if args.attempts {
        for (number, path) in &attempts {
            println!("{number}  {}", path.display());
        }
        return Ok(ExitCode::SUCCESS);
    }
    if args.follow {
        if target.is_none() {
            target = args.state.target(&settings).ok();
        }
        if follow(&logs.path(&drv), &drv, target.as_ref())? {
            return Ok(ExitCode::SUCCESS);
        }
        // It has ended, perhaps so long ago that its log is compressed.
    }
    let path = match args.attempt {
        None => attempts.last().map(|(_, path)| path),
        Some(wanted) => attempts
            .iter()
            .find(|(number, _)| *number == wanted)
            .map(|(_, path)| path),
    };
    match path {
        Some(path) => print(path),
        None if attempts.is_empty() => bail!(
            "there is no log of {drv} in {}: it was not built here (yet), or its outputs were already there",
            settings.data_dir.join("build-logs").display()
        ),
        None => bail!("there are only {} attempts of {drv}; --attempts lists them", attempts.len()),
    }
}

/// The derivation whose log tells about a build: of the step that failed, else the top-level one.
fn drv_of_build(target: &DbTarget, build: i32) -> Result<String> {
    let mut client = target.connect("hydrad-log")?;
    let rows = client.query(
        include_str!("../../sql/admin/select_log_drv.sql"),
        &[&build],
    )?;
    match rows.first() {
        Some(row) => Ok(row.get(0)),
        None => bail!("there is no build {build}"),
    }
}

fn print(path: &Path) -> Result<ExitCode> {
    let decompressor = match path.extension().and_then(|end| end.to_str()) {
        Some("bz2") => Some("bzip2"),
        Some("zst") => Some("zstd"),
        _ => None,
    };
    match decompressor {
        None => {
            let mut file =
                File::open(path).with_context(|| format!("cannot read {}", path.display()))?;
            copy(&mut file)?;
            Ok(ExitCode::SUCCESS)
        }
        Some(program) => {
            let status = Command::new(program)
                .args(["-d", "-c"])
                .arg(path)
                .stdin(Stdio::null())
                .status()
                .with_context(|| {
                    format!(
                        "cannot start {program}, which is needed to read {}",
                        path.display()
                    )
                })?;
            Ok(if status.success() {
                ExitCode::SUCCESS
            } else {
                ExitCode::FAILURE
            })
        }
    }
}

/// Copies to standard output; a reader that has seen enough (`| head`) is no error.
fn copy(file: &mut impl Read) -> Result<u64> {
    match io::copy(file, &mut io::stdout().lock()) {
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => std::process::exit(0),
        copied => Ok(copied.context("cannot print the log")?),
    }
}

/// Prints a log as it grows; `false` if there was none to print and nothing builds it.
fn follow(path: &PathBuf, drv: &str, target: Option<&DbTarget>) -> Result<bool> {
    let mut client = target
        .map(|target| target.connect("hydrad-log"))
        .transpose()?;
    let mut open: Option<(File, u64)> = None;
    let mut waiting_told = false;
    loop {
        // Asked before the last read: what is written before the end is still printed.
        let busy = match &mut client {
            Some(client) => client
                .query_one(include_str!("../../sql/admin/is_drv_busy.sql"), &[&drv])?
                .get(0),
            None => true,
        };
        if open.is_none() {
            open = File::open(path).ok().map(|file| (file, 0));
        }
        if let Some((file, position)) = &mut open {
            if file.metadata()?.len() < *position {
                file.rewind()?;
            }
            copy(file)?;
            io::stdout().flush()?;
            *position = file.stream_position()?;
            // A new attempt has begun with a file of its own; what the old one got before that is printed.
            let is_another =
                |now: Metadata, read: Metadata| (now.dev(), now.ino()) != (read.dev(), read.ino());
            if std::fs::metadata(path)
                .is_ok_and(|now| file.metadata().is_ok_and(|read| is_another(now, read)))
            {
                copy(file)?;
                eprintln!("hydrad: another attempt begins");
                open = None;
                continue;
            }
        } else if !waiting_told && busy {
            eprintln!("waiting for {drv} to start");
            waiting_told = true;
        }
        if !busy {
            return Ok(open.is_some());
        }
        std::thread::sleep(LOOK_EVERY);
    }
}
