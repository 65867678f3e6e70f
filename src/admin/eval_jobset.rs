//! `hydrad eval-jobset`: one evaluation of one jobset.

use std::process::ExitCode;
use std::sync::Arc;

use anyhow::{Context as _, Result};
use serde_json::{json, Value};

use super::connect::{environment, StateArgs};
use crate::db::connect::DbTarget;
use crate::db::{schema, Pool};
use crate::eval::inputs::Fetcher;
use crate::eval::jobset::progress::{Phase, Progress};
use crate::eval::jobset::{self, Ending, Order, Place};
use crate::store::local::LocalStore;
use crate::sys::signals::{self, Signal};
use crate::sys::statsd::Statsd;
use crate::sys::thread;

/// Connections for the caches of inputs, beside that of the evaluation.
const POOLED_MAX: u32 = 1;

/// Evaluate a jobset once
///
/// Fetches the jobset's inputs, evaluates its jobs unless nothing changed since the last evaluation, queues the builds that are new,
/// and writes into the jobset's row what happened, whatever that is. The evaluator does this whenever a jobset is due; by hand it
/// is done at once, whether the jobset is due or enabled or not. While another evaluation of the same jobset is at work this waits.
#[derive(clap::Args, Debug)]
#[command(
    after_help = "Exit code: 0 if the jobset was evaluated or nothing changed, also when an input could not be fetched; 1 if the evaluation \
failed as a whole (the jobset's row says why), or with --dry-run an input could not be fetched; 2 if it could not be done, for instance \
since there is no such jobset.

Environment: HYDRA_DRY_RUN is --dry-run; HYDRA_DEBUG prints what is evaluated; HYDRA_MAIL_TEST mails an error though it is not new.

Examples:
  hydrad eval-jobset nixpkgs trunk                evaluate, as the evaluator would
  hydrad eval-jobset nixpkgs trunk --force        though nothing changed
  hydrad eval-jobset nixpkgs trunk --dry-run      what the jobs are; nothing is written or announced"
)]
pub struct EvalJobsetArgs {
    #[command(flatten)]
    pub state: StateArgs,
    /// Evaluate, print the jobs, write and announce nothing
    #[arg(long)]
    pub dry_run: bool,
    /// Evaluate although nothing changed
    #[arg(long)]
    pub force: bool,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
    /// The project's name
    pub project: String,
    /// The jobset's name; `.jobsets` of a declarative project
    pub jobset: String,
}

/// # Errors
/// When the jobset's row does not say what happened.
pub fn run(args: &EvalJobsetArgs) -> Result<ExitCode> {
    let progress = Arc::new(Progress::new());
    let settings = args.state.settings()?;
    let target = args.state.target(&settings)?;
    let schema = schema::check_schema(&mut target.connect(jobset::APPLICATION_NAME)?)?;
    for warning in schema.serve()? {
        log::warn!("{warning}");
    }
    let order = Order {
        project: args.project.clone(),
        jobset: args.jobset.clone(),
        dry_run: args.dry_run || std::env::var_os("HYDRA_DRY_RUN").is_some(),
        force: args.force,
    };
    let signals = signals::listen().context("cannot listen to signals")?;
    let (stopped, its_target, its_progress) =
        (order.clone(), target.clone(), Arc::clone(&progress));
    thread::spawn("stop", move || {
        for _ in signals.iter().filter(|signal| *signal == Signal::Stop) {
            stop(&stopped, &its_target, &its_progress);
        }
    })?;
    let store = Arc::new(LocalStore::from_env(
        &environment,
        &settings.nix_daemon_program,
    ));
    let pool = Pool::new(target.clone(), POOLED_MAX, jobset::APPLICATION_NAME);
    // Whoever is told to stop leaves the process, and what it started ends with it.
    let fetcher = Fetcher::new(&settings, pool, Arc::clone(&store), || false);
    let statsd = Statsd::new(&settings.statsd.host, settings.statsd.port);
    let place = Place {
        settings: &settings,
        target: &target,
        store: &store,
        fetcher: fetcher.map_err(|error| error.to_string()),
        features: schema.features,
        statsd: &statsd,
    };
    let ending = jobset::run(&place, &order, &progress);
    progress.finish();
    let ending = ending?;
    report(args, &order, &ending);
    let failed = match ending {
        Ending::Failed { .. } => true,
        // Nothing else says so.
        Ending::Unfetched { .. } => order.dry_run,
        _ => false,
    };
    Ok(ExitCode::from(u8::from(failed)))
}

/// Told to stop: the row says so. What is being written is finished, since nothing is lost by that.
fn stop(order: &Order, target: &DbTarget, progress: &Progress) {
    let name = format!("{}:{}", order.project, order.jobset);
    match progress.phase() {
        Phase::Writing | Phase::Marking => {
            progress.beside(|| log::info!("{name}: stops when what was evaluated is written"));
        }
        // Nothing was begun, or nothing is to be written.
        Phase::Waiting => signals::end_by_sigterm(),
        _ if order.dry_run => signals::end_by_sigterm(),
        // Who stops it knows why, and says so: a time limit, or that everything stops.
        _ if progress.is_supervised() => signals::end_by_sigterm(),
        _ => {
            let error = format!(
                "the evaluation was stopped by a signal while {}",
                progress.words()
            );
            progress.beside(|| log::error!("{name}: {error}"));
            match jobset::record_stop(target, order, &error) {
                Ok(()) => std::process::exit(1),
                Err(error) => {
                    log::error!("{name}: cannot write that: {error}");
                    signals::end_by_sigterm();
                }
            }
        }
    }
}

fn report(args: &EvalJobsetArgs, order: &Order, ending: &Ending) {
    if args.json {
        println!("{}", in_json(ending));
        return;
    }
    let name = format!("{}:{}", order.project, order.jobset);
    match ending {
        Ending::Unfetched { error } => eprintln!("{name}: an input cannot be fetched: {error}"),
        Ending::Failed { error } => {
            eprintln!("{name}: the evaluation failed:\n{}", error.trim_end())
        }
        Ending::Unchanged { evaluation } => {
            println!("{name}: nothing changed since evaluation {evaluation}");
        }
        Ending::Evaluated(written) => {
            let (new, old, failed) = (written.new, written.old, written.failed);
            let errors = match failed {
                0 => String::new(),
                n => format!(", {n} jobs with errors"),
            };
            let same = if written.changed {
                ""
            } else {
                ", the same as before"
            };
            let evaluation = written.evaluation;
            println!("{name}: evaluation {evaluation}: {new} new builds, {old} kept{same}{errors}");
        }
        Ending::Applied(applied) => {
            let counts = [
                (applied.created.len(), "created"),
                (applied.changed.len(), "changed"),
                (applied.disabled.len(), "disabled"),
                (applied.unchanged.len(), "unchanged"),
            ];
            let counts: Vec<String> = counts
                .iter()
                .map(|(count, what)| format!("{count} {what}"))
                .collect();
            println!("{name}: jobsets: {}", counts.join(", "));
            eprint!("{}", applied.error_text());
        }
        Ending::Dry(jobs) => {
            // As Hydra's program says it.
            for job in jobs {
                match (&job.error, &job.derivation) {
                    (None, Some(derivation)) => {
                        eprintln!("good job {}: {}", job.name, derivation.drv_path)
                    }
                    (error, _) => {
                        let error = error.as_deref().unwrap_or("no derivation");
                        eprintln!("failed job {}: {error}", job.name);
                    }
                }
            }
        }
        Ending::DryNothing(words) => eprintln!("{name}: {words}"),
    }
}

fn in_json(ending: &Ending) -> Value {
    match ending {
        Ending::Unfetched { error } => json!({"end": "unfetched", "error": error}),
        Ending::Failed { error } => json!({"end": "failed", "error": error}),
        Ending::Unchanged { evaluation } => json!({"end": "unchanged", "evaluation": evaluation}),
        Ending::Evaluated(written) => json!({
            "end": "evaluated", "evaluation": written.evaluation, "changed": written.changed,
            "new": written.new, "kept": written.old, "failed": written.failed,
        }),
        Ending::Applied(applied) => json!({
            "end": "applied", "created": applied.created, "changed": applied.changed,
            "disabled": applied.disabled, "unchanged": applied.unchanged, "errors": applied.errors,
        }),
        Ending::Dry(jobs) => {
            let jobs: Vec<Value> = jobs
                .iter()
                .map(|job| {
                    let drv = job
                        .derivation
                        .as_ref()
                        .map(|derivation| &derivation.drv_path);
                    json!({"job": job.name, "drv": drv, "error": job.error})
                })
                .collect();
            json!({"end": "dry", "jobs": jobs})
        }
        Ending::DryNothing(words) => json!({"end": "dry", "nothing": words}),
    }
}
