//! `hydrad eval-jobs`: evaluates the jobs of an expression or a flake and prints them, as hydra-eval-jobs does.

use std::collections::BTreeMap;
use std::io::{IsTerminal, Write as _};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use serde_json::{json, Map, Value};

use super::connect::{environment, StateArgs};
use crate::eval::job::{Argument, Job, JobDerivation, Source};
use crate::eval::jobs::{self, Progress, Request};
use crate::store::local::LocalStore;

/// Evaluate the jobs of an expression or a flake, and print them as JSON
///
/// EXPR is a file, `<NAME/FILE>` on the search path that -I makes, or a URL of a tarball; with
/// --flake a locked flake reference. As in a jobset's evaluation only what -I names can be read,
/// and how many processes evaluate, with how much memory, says hydra.conf (evaluator_workers,
/// evaluator_max_memory_size, evaluator_job_timeout). So this shows what an evaluation of the
/// jobset would find:
///
///    hydrad eval-jobs -I src=$PWD --argstr system x86_64-linux '<src/release.nix>'
///    hydrad eval-jobs --flake git+file:///srv/project?rev=...
///
/// The JSON has one object for each job: `nixName`, `system`, `drvPath`, `outputs`,
/// `description`, ... and, where it cannot be evaluated, `error`. Errors are shown on stderr too.
/// The exit code is 0 whatever becomes of single jobs.
#[derive(clap::Args, Debug)]
#[command(verbatim_doc_comment)]
pub struct EvalJobsArgs {
    #[command(flatten)]
    pub state: StateArgs,
    /// EXPR is a flake
    #[arg(long)]
    pub flake: bool,
    /// Make no GC roots and rewrite no aggregates
    #[arg(long)]
    pub dry_run: bool,
    /// Make a GC root for each job's derivation in this folder
    #[arg(long, value_name = "DIR")]
    pub gc_roots_dir: Option<PathBuf>,
    /// Add NAME=PATH to the search path; may be repeated
    #[arg(short = 'I', long = "include", value_name = "NAME=PATH")]
    pub search: Vec<String>,
    /// Give functions the value of a Nix expression as argument NAME
    #[arg(long, num_args = 2, value_names = ["NAME", "EXPR"], action = clap::ArgAction::Append)]
    pub arg: Vec<String>,
    /// Give functions a string as argument NAME
    #[arg(long, num_args = 2, value_names = ["NAME", "STRING"], action = clap::ArgAction::Append)]
    pub argstr: Vec<String>,
    /// Set a setting of Nix's
    #[arg(long, num_args = 2, value_names = ["NAME", "VALUE"], action = clap::ArgAction::Append)]
    pub option: Vec<String>,
    /// Builds at once on this host for what is imported from derivations
    #[arg(long, short = 'j', value_name = "N")]
    pub max_jobs: Option<u32>,
    /// Show where errors come from
    #[arg(long)]
    pub show_trace: bool,
    /// Processes that evaluate, instead of evaluator_workers
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=256))]
    pub workers: Option<u32>,
    /// MiB that each of them may have, instead of evaluator_max_memory_size
    #[arg(long, value_name = "MIB", value_parser = clap::value_parser!(u64).range(64..))]
    pub max_memory_size: Option<u64>,
    /// A file, <NAME/FILE>, a URL, or with --flake a flake reference
    #[arg(value_name = "EXPR")]
    pub expression: String,
}

/// # Errors
/// When nothing can be said of the jobs.
pub fn run(args: &EvalJobsArgs) -> Result<ExitCode> {
    let settings = args.state.settings()?;
    let store = LocalStore::from_env(&environment, &settings.nix_daemon_program);
    let mut evaluator = settings.evaluator;
    if let Some(workers) = args.workers {
        evaluator.workers = workers;
    }
    if let Some(size) = args.max_memory_size {
        evaluator.memory_max_bytes = size << 20;
    }
    let request = Request {
        source: source(args)?,
        settings: evaluator,
        gc_roots_dir: args.gc_roots_dir.clone(),
        options: options(args),
        dry_run: args.dry_run,
        store: &store,
    };
    if args.gc_roots_dir.is_none() && !args.dry_run {
        log::warn!("--gc-roots-dir is not given: the derivations may be collected at any time");
    }
    let bar = progress_bar();
    let began = Instant::now();
    let mut found = BTreeMap::new();
    let summary = jobs::evaluate(
        &request,
        &mut |job| {
            if let Some(error) = &job.error {
                bar.suspend(|| eprintln!("{}", error_text(&job.name, error)));
            }
            found.insert(job.name.clone(), to_json(&job));
        },
        &|progress| show(&bar, progress),
    )?;
    bar.finish_and_clear();
    log::info!(
        "{} jobs in {:.1} s, {} with an error; {} processes, the largest had {} MiB, together {} MiB",
        summary.jobs,
        began.elapsed().as_secs_f64(),
        summary.failed,
        summary.processes,
        summary.peak_process_bytes >> 20,
        summary.peak_bytes >> 20
    );
    let found: Map<String, Value> = found.into_iter().collect();
    let mut out = std::io::stdout().lock();
    serde_json::to_writer_pretty(&mut out, &found)
        .map_err(std::io::Error::from)
        .and_then(|()| writeln!(out))
        .context("cannot write the jobs")?;
    Ok(ExitCode::SUCCESS)
}

/// An error of a job, as evaluations record them.
fn error_text(name: &str, error: &str) -> String {
    match name {
        "" => format!("at top-level:\n{error}\n"),
        name => format!("in job ‘{name}’:\n{error}\n"),
    }
}

fn source(args: &EvalJobsArgs) -> Result<Source> {
    if args.flake {
        return Ok(Source::Flake {
            locked: args.expression.clone(),
        });
    }
    let on_path = args.expression.strip_prefix('<');
    let file = match on_path.and_then(|rest| rest.strip_suffix('>')) {
        Some(place) => place.to_owned(),
        None if args.expression.contains("://") => args.expression.clone(),
        None => std::fs::canonicalize(&args.expression)
            .with_context(|| format!("cannot read {}", args.expression))?
            .into_os_string()
            .into_string()
            .ok()
            .with_context(|| format!("the path of {} is not plain text", args.expression))?,
    };
    let search = args.search.iter().map(|entry| match entry.split_once('=') {
        Some((name, path)) => (name.to_owned(), path.to_owned()),
        None => (String::new(), entry.clone()),
    });
    let pair = |pair: &[String]| (pair[0].clone(), pair[1].clone());
    let expressions = args.arg.chunks_exact(2).map(pair);
    let strings = args.argstr.chunks_exact(2).map(pair);
    let arguments = expressions
        .map(|(name, text)| (name, Argument::Expression(text)))
        .chain(strings.map(|(name, text)| (name, Argument::String(text))));
    // The last of a name counts, as it does for Nix.
    let arguments: BTreeMap<String, Argument> = arguments.collect();
    Ok(Source::Legacy {
        file,
        search: search.collect(),
        arguments: arguments.into_iter().collect(),
    })
}

fn options(args: &EvalJobsArgs) -> Vec<(String, String)> {
    let pairs = args.option.chunks_exact(2);
    let mut options: Vec<(String, String)> = pairs
        .map(|pair| (pair[0].clone(), pair[1].clone()))
        .collect();
    if let Some(jobs) = args.max_jobs {
        options.push(("max-jobs".to_owned(), jobs.to_string()));
    }
    if args.show_trace {
        options.push(("show-trace".to_owned(), "true".to_owned()));
    }
    options
}

/// As hydra-eval-jobs prints it.
fn to_json(job: &Job) -> Value {
    let mut object = Map::new();
    if let Some(found) = &job.derivation {
        let JobDerivation {
            nix_name,
            system,
            drv_path,
            outputs,
            description,
            homepage,
            license,
            maintainers,
            scheduling_priority,
            timeout,
            max_silent,
            is_channel,
            constituents,
            is_aggregate,
        } = found;
        let outputs: Map<String, Value> = outputs
            .iter()
            .filter_map(|(name, path)| Some((name.clone(), json!(path.as_ref()?))))
            .collect();
        let fields = [
            ("nixName", json!(nix_name)),
            ("system", json!(system)),
            ("drvPath", json!(drv_path)),
            ("outputs", Value::Object(outputs)),
            ("description", json!(description)),
            ("homepage", json!(homepage)),
            ("license", json!(license)),
            ("maintainers", json!(maintainers)),
            ("schedulingPriority", json!(scheduling_priority)),
            ("timeout", json!(timeout)),
            ("maxSilent", json!(max_silent)),
            ("isChannel", json!(is_channel)),
        ];
        object.extend(fields.map(|(name, value)| (name.to_owned(), value)));
        if *is_aggregate {
            object.insert("constituents".to_owned(), json!(constituents));
        }
    }
    if let Some(error) = &job.error {
        object.insert("error".to_owned(), json!(error));
    }
    Value::Object(object)
}

fn progress_bar() -> indicatif::ProgressBar {
    if !std::io::stderr().is_terminal() {
        return indicatif::ProgressBar::hidden();
    }
    let bar = indicatif::ProgressBar::new(0);
    let template = "{elapsed} [{bar:40}] {pos} of {len} jobs evaluated{msg}";
    if let Ok(style) = indicatif::ProgressStyle::with_template(template) {
        bar.set_style(style);
    }
    bar.enable_steady_tick(Duration::from_secs(1));
    bar
}

fn show(bar: &indicatif::ProgressBar, progress: &Progress) {
    bar.set_length(progress.found);
    bar.set_position(progress.evaluated);
    bar.set_message(format!(
        ", {} with an error, {} MiB in {} processes",
        progress.failed,
        progress.memory_bytes >> 20,
        progress.workers
    ));
}
