//! `hydrad eval`: looks at evaluations, compares them, cancels and restarts their builds.

use std::collections::BTreeMap;
use std::process::ExitCode;
use std::str::FromStr;

use anyhow::{ensure, Context as _, Result};
use postgres::Client;
use serde_json::{json, Value};

use super::build::keep_derivations;
use super::comparison::{compare, Comparison, Pair};
use super::manage::change::{connect, find_jobset, now, transact, JobsetName, ReadArgs, WriteArgs};
use super::manage::jobset::ago;
use super::table;
use crate::base::text::clip;
use crate::db::operate::{self, Changed};
use crate::db::results::{self, Evaluation, EvaluationInput, Job};

/// Builds that can be tried again: everything that did not succeed.
const FAILED: fn(i32) -> bool = |status| status != 0;
/// Builds that ended for reasons outside of them: aborted, cancelled, no machine for them.
const ABORTED: fn(i32) -> bool = |status| matches!(status, 3 | 4 | 9);
/// A revision in a table.
const REVISION_BYTES_MAX: usize = 60;

/// List, show and compare evaluations, cancel and restart their builds
#[derive(clap::Args, Debug)]
pub struct EvalArgs {
    #[command(subcommand)]
    pub action: EvalAction,
}

#[derive(clap::Subcommand, Debug)]
pub enum EvalAction {
    List(ListArgs),
    Show(ShowArgs),
    Diff(DiffArgs),
    Cancel(CancelArgs),
    Restart(RestartArgs),
}

/// List the newest evaluations of a jobset
#[derive(clap::Args, Debug)]
pub struct ListArgs {
    #[command(flatten)]
    pub read: ReadArgs,
    /// Those too whose jobs are the same as before
    #[arg(long, short)]
    pub all: bool,
    /// So many at most
    #[arg(long, value_name = "N", default_value_t = 20, value_parser = clap::value_parser!(i64).range(1..=10_000))]
    pub last: i64,
    #[arg(value_name = "PROJECT:JOBSET")]
    pub name: JobsetName,
}

/// Show an evaluation: its inputs, its jobs and how they ended, and what could not be evaluated
#[derive(clap::Args, Debug)]
#[command(after_help = "Examples:
  hydrad eval show 1234
  hydrad eval show tools:trunk --failed        the newest evaluation of a jobset, and only what does not succeed
  hydrad eval show 1234 --json | jq '.jobs[] | select(.status == 1) | .build'")]
pub struct ShowArgs {
    #[command(flatten)]
    pub read: ReadArgs,
    /// Only jobs that have ended without success
    #[arg(long)]
    pub failed: bool,
    /// A number, or PROJECT:JOBSET for its newest one
    #[arg(value_name = "EVALUATION")]
    pub which: Which,
}

/// Compare an evaluation with another: what is newly broken, newly fixed, still failing, added, removed
///
/// By job and system, as on Hydra's page of an evaluation. Without a second one it is compared with the one before it in
/// the same jobset. Where a job is not built yet in one of the two, it is unfinished; where it was aborted or cancelled,
/// nothing is said about it.
#[derive(clap::Args, Debug)]
#[command(
    after_help = "Exit code: 0; with --exit-code 1 if something is newly broken, or cannot be evaluated any more.

Examples:
  hydrad eval diff tools:trunk                 the newest evaluation against the one before
  hydrad eval diff 1234 1200 --exit-code
  hydrad eval diff tools:next tools:trunk      one jobset against another"
)]
pub struct DiffArgs {
    #[command(flatten)]
    pub read: ReadArgs,
    /// Exit code 1 if something is newly broken
    #[arg(long)]
    pub exit_code: bool,
    /// A number, or PROJECT:JOBSET for its newest one
    #[arg(value_name = "EVALUATION")]
    pub which: Which,
    /// What to compare it with
    #[arg(value_name = "OTHER")]
    pub other: Option<Which>,
}

/// Cancel all queued builds of an evaluation
///
/// They end as cancelled (4), also where they belong to other evaluations too. What is running for them is stopped, unless
/// another build wants it.
#[derive(clap::Args, Debug)]
pub struct CancelArgs {
    #[command(flatten)]
    pub write: WriteArgs,
    /// A number, or PROJECT:JOBSET for its newest one
    #[arg(value_name = "EVALUATION")]
    pub which: Which,
}

/// Build again what did not succeed in an evaluation
///
/// As `hydrad build restart` for each of them: recorded failures are forgotten, and the derivations must still be in the local
/// store.
#[derive(clap::Args, Debug)]
#[command(after_help = "Examples:
  hydrad eval restart 1234                     everything that did not succeed
  hydrad eval restart tools:trunk --aborted    only what was aborted, cancelled or had no machine")]
pub struct RestartArgs {
    #[command(flatten)]
    pub write: WriteArgs,
    /// Only what was aborted or cancelled or had no machine
    #[arg(long)]
    pub aborted: bool,
    /// Do not look for the derivations
    #[arg(long)]
    pub force: bool,
    /// A number, or PROJECT:JOBSET for its newest one
    #[arg(value_name = "EVALUATION")]
    pub which: Which,
}

/// An evaluation as it is named.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Which {
    Id(i32),
    NewestOf(JobsetName),
}

impl FromStr for Which {
    type Err = String;

    fn from_str(text: &str) -> Result<Which, String> {
        if let Ok(name) = text.parse() {
            return Ok(Which::NewestOf(name));
        }
        let id = text.parse().ok().filter(|id| *id > 0);
        id.map(Which::Id)
            .ok_or_else(|| "expected the number of an evaluation, or PROJECT:JOBSET".to_owned())
    }
}

/// # Errors
/// When it cannot be done.
pub fn run(args: &EvalArgs) -> Result<ExitCode> {
    match &args.action {
        EvalAction::List(args) => list(args),
        EvalAction::Show(args) => show(args),
        EvalAction::Diff(args) => diff(args),
        EvalAction::Cancel(args) => cancel(args),
        EvalAction::Restart(args) => restart(args),
    }
}

fn find(client: &mut Client, which: &Which) -> Result<Evaluation> {
    let id = match which {
        Which::Id(id) => *id,
        Which::NewestOf(name) => results::newest_changed(client, &name.project, &name.jobset)?
            .with_context(|| {
                format!("there is no evaluation of `{name}` with builds; `hydrad eval list {name} --all` shows any")
            })?,
    };
    results::evaluation(client, id)?.with_context(|| format!("there is no evaluation {id}"))
}

// ---- list and show

fn list(args: &ListArgs) -> Result<ExitCode> {
    let (_, mut client) = connect(&args.read.state)?;
    let name = &args.name;
    let found = results::evaluations(
        &mut client,
        &name.project,
        &name.jobset,
        args.all,
        args.last,
    )?;
    if found.is_empty() {
        transact(&mut client, false, |tx| find_jobset(tx, name))?;
    }
    if args.read.json {
        let list: Vec<Value> = found.iter().map(evaluation_json).collect();
        println!("{}", json!({ "evaluations": list }));
        return Ok(ExitCode::SUCCESS);
    }
    if found.is_empty() {
        println!("no evaluations of {name}; `hydrad jobset evaluate {name}` makes one");
        return Ok(ExitCode::SUCCESS);
    }
    let headings = [
        "evaluation",
        "age",
        "builds",
        "new",
        "succeeded",
        "failed",
        "queued",
        "took",
        "errors",
    ];
    let mut rows = vec![headings.map(str::to_owned).to_vec()];
    for evaluation in &found {
        let counts = evaluation.counts;
        let count = |count: i64| match evaluation.changed {
            true => count.to_string(),
            false => "=".to_owned(),
        };
        rows.push(vec![
            evaluation.id.to_string(),
            ago(Some(evaluation.at)).unwrap_or_default(),
            count(counts.all),
            count(counts.new),
            count(counts.succeeded),
            count(counts.failed),
            count(counts.queued),
            table::duration((evaluation.fetching_secs + evaluation.evaluating_secs).into()),
            if evaluation.error.is_empty() {
                ""
            } else {
                "yes"
            }
            .to_owned(),
        ]);
    }
    print!("{}", table::table(&rows));
    Ok(ExitCode::SUCCESS)
}

fn evaluation_json(evaluation: &Evaluation) -> Value {
    let counts = evaluation.counts;
    json!({"id": evaluation.id, "jobset": evaluation.jobset_name(), "timestamp": evaluation.at,
        "checkoutTime": evaluation.fetching_secs, "evalTime": evaluation.evaluating_secs, "changed": evaluation.changed,
        "flake": evaluation.flake, "nixexprinput": evaluation.nix_expr_input, "nixexprpath": evaluation.nix_expr_path,
        "error": evaluation.error, "builds": counts.all, "newBuilds": counts.new, "succeeded": counts.succeeded,
        "failed": counts.failed, "queued": counts.queued})
}

fn job_json(job: &Job) -> Value {
    json!({"job": job.job, "system": job.system, "build": job.build, "status": job.status, "text": job.status_words(),
        "new": job.is_new, "name": job.nix_name})
}

fn input_json(input: &EvaluationInput) -> Value {
    json!({"name": input.name, "type": input.kind, "uri": input.uri, "revision": input.revision, "value": input.value,
        "dependency": input.dependency, "path": input.path})
}

fn show(args: &ShowArgs) -> Result<ExitCode> {
    let (_, mut client) = connect(&args.read.state)?;
    let evaluation = find(&mut client, &args.which)?;
    let inputs = results::inputs(&mut client, evaluation.id)?;
    let mut jobs = results::jobs(&mut client, evaluation.id)?;
    jobs.retain(|job| !args.failed || job.status.is_some_and(FAILED));
    if args.read.json {
        let mut object = evaluation_json(&evaluation);
        object["inputs"] = inputs.iter().map(input_json).collect();
        object["jobs"] = jobs.iter().map(job_json).collect();
        println!("{object}");
        return Ok(ExitCode::SUCCESS);
    }
    let counts = evaluation.counts;
    println!(
        "evaluation {} of {}, {}\n",
        evaluation.id,
        evaluation.jobset_name(),
        ago(Some(evaluation.at)).unwrap_or_default()
    );
    let text = |text: &Option<String>| text.clone().unwrap_or_default();
    let source = match &evaluation.flake {
        Some(locked) => locked.clone(),
        None => format!(
            "{}/{}",
            text(&evaluation.nix_expr_input),
            text(&evaluation.nix_expr_path)
        ),
    };
    let rows = [
        ("source", source),
        (
            "took",
            format!(
                "{} to fetch, {} to evaluate",
                table::duration(evaluation.fetching_secs.into()),
                table::duration(evaluation.evaluating_secs.into())
            ),
        ),
        (
            "builds",
            match evaluation.changed {
                true => format!(
                    "{}, of which {} new; {} succeeded, {} failed, {} queued",
                    counts.all, counts.new, counts.succeeded, counts.failed, counts.queued
                ),
                false => "the same as in the evaluation before".to_owned(),
            },
        ),
    ];
    let rows = rows.map(|(what, value)| vec![what.to_owned(), value]);
    println!("{}", table::table(&rows));
    if !inputs.is_empty() {
        let mut rows = vec![["input", "type", "from", "revision or value"]
            .map(str::to_owned)
            .to_vec()];
        for input in &inputs {
            rows.push(vec![
                input.name.clone(),
                input.kind.clone(),
                text(&input.uri),
                state_of(input),
            ]);
        }
        println!("{}", table::table(&rows));
    }
    if !jobs.is_empty() {
        let mut rows = vec![["job", "system", "build", "status"]
            .map(str::to_owned)
            .to_vec()];
        rows.extend(jobs.iter().map(|job| {
            let new = if job.is_new { "" } else { " (as before)" };
            vec![
                job.job.clone(),
                job.system.clone(),
                job.build.to_string(),
                format!("{}{new}", job.status_words()),
            ]
        }));
        println!("{}", table::table(&rows));
    }
    if !evaluation.error.is_empty() {
        println!(
            "What could not be evaluated:\n{}",
            evaluation.error.trim_end()
        );
    }
    Ok(ExitCode::SUCCESS)
}

/// What tells one state of an input from the next.
fn state_of(input: &EvaluationInput) -> String {
    let build = input.dependency.map(|build| format!("build {build}"));
    let revision = input.revision.clone().filter(|text| !text.is_empty());
    let state = revision.or_else(|| input.value.clone()).or(build);
    clip(&state.unwrap_or_default(), REVISION_BYTES_MAX).replace('\n', " ")
}

// ---- diff

fn diff(args: &DiffArgs) -> Result<ExitCode> {
    let (_, mut client) = connect(&args.read.state)?;
    let evaluation = find(&mut client, &args.which)?;
    ensure!(
        evaluation.changed,
        "evaluation {} has the same builds as the one before, so it has none of its own to compare",
        evaluation.id
    );
    let other = match &args.other {
        Some(other) => Some(find(&mut client, other)?),
        None => match results::previous(&mut client, evaluation.id)? {
            Some(id) => results::evaluation(&mut client, id)?,
            None => None,
        },
    };
    let now = results::jobs(&mut client, evaluation.id)?;
    let (before, inputs_before) = match &other {
        Some(other) => (
            results::jobs(&mut client, other.id)?,
            results::inputs(&mut client, other.id)?,
        ),
        None => Default::default(),
    };
    let found = compare(&now, &before, &evaluation.error);
    let inputs = results::inputs(&mut client, evaluation.id)?;
    let inputs = inputs_changed(&inputs, &inputs_before);
    if args.read.json {
        println!(
            "{}",
            diff_json(&evaluation, other.as_ref(), &found, &inputs)
        );
    } else {
        print_diff(&evaluation, other.as_ref(), &found, &inputs);
    }
    Ok(match args.exit_code && found.is_worse() {
        true => ExitCode::FAILURE,
        false => ExitCode::SUCCESS,
    })
}

/// An input that is not the same: its name, and what it was and is.
type InputChange = (String, Option<String>, Option<String>);

fn inputs_changed(now: &[EvaluationInput], before: &[EvaluationInput]) -> Vec<InputChange> {
    let states = |inputs: &[EvaluationInput]| -> BTreeMap<String, String> {
        let state = |input: &EvaluationInput| (input.name.clone(), state_of(input));
        inputs.iter().map(state).collect()
    };
    let (now, before) = (states(now), states(before));
    let mut names: Vec<&String> = now.keys().chain(before.keys()).collect();
    names.sort();
    names.dedup();
    let pair = |name: &&String| (before.get(*name).cloned(), now.get(*name).cloned());
    names
        .iter()
        .map(|name| (name, pair(name)))
        .filter(|(_, (before, now))| before != now)
        .map(|(name, (before, now))| ((*name).clone(), before, now))
        .collect()
}

/// The lists with what they are called for scripts and for people.
fn lists<'a, 'b>(
    found: &'b Comparison<'a>,
) -> [(&'static str, &'static str, &'b Vec<Pair<'a>>); 8] {
    [
        ("newlyBroken", "newly broken", &found.newly_broken),
        (
            "notEvaluated",
            "cannot be evaluated any more",
            &found.not_evaluated,
        ),
        ("newlyFixed", "newly fixed", &found.newly_fixed),
        ("stillFailing", "still failing", &found.still_failing),
        ("added", "added", &found.added),
        ("removed", "removed", &found.removed),
        ("unfinished", "unfinished", &found.unfinished),
        ("aborted", "aborted or cancelled", &found.aborted),
    ]
}

fn diff_json(
    evaluation: &Evaluation,
    other: Option<&Evaluation>,
    found: &Comparison<'_>,
    inputs: &[InputChange],
) -> Value {
    let pair = |pair: &Pair<'_>| {
        let part = |job: Option<&Job>| {
            job.map(
                |job| json!({"build": job.build, "status": job.status, "text": job.status_words()}),
            )
        };
        json!({"job": pair.any().map(|job| &job.job), "system": pair.any().map(|job| &job.system), "now": part(pair.now),
            "before": part(pair.before)})
    };
    let inputs: Vec<Value> = inputs
        .iter()
        .map(|(name, before, now)| json!({"name": name, "before": before, "now": now}))
        .collect();
    let mut object = json!({"evaluation": evaluation.id, "jobset": evaluation.jobset_name(),
        "other": other.map(|other| other.id), "otherJobset": other.map(Evaluation::jobset_name), "inputs": inputs,
        "stillSucceeding": found.still_succeeding});
    for (key, _, list) in lists(found) {
        object[key] = list.iter().map(pair).collect();
    }
    object
}

fn print_diff(
    evaluation: &Evaluation,
    other: Option<&Evaluation>,
    found: &Comparison<'_>,
    inputs: &[InputChange],
) {
    let name =
        |evaluation: &Evaluation| format!("{} of {}", evaluation.id, evaluation.jobset_name());
    match other {
        Some(other) => println!("evaluation {} against {}", name(evaluation), name(other)),
        None => println!("evaluation {}, the first", name(evaluation)),
    }
    if !inputs.is_empty() && other.is_some() {
        println!("\ninputs");
        let state = |state: &Option<String>| state.clone().unwrap_or_else(|| "nothing".to_owned());
        let rows = inputs.iter().map(|(name, before, now)| {
            let change = format!("{} -> {}", state(before), state(now));
            vec![format!("  {name}"), change]
        });
        print!("{}", table::table(&rows.collect::<Vec<_>>()));
    }
    for (_, title, list) in lists(found) {
        if list.is_empty() {
            continue;
        }
        let (on, off) = match (table::colour(), title) {
            (true, "newly broken" | "cannot be evaluated any more") => ("\u{1b}[31m", "\u{1b}[0m"),
            (true, "newly fixed") => ("\u{1b}[32m", "\u{1b}[0m"),
            _ => ("", ""),
        };
        println!("\n{on}{title}: {}{off}", list.len());
        let rows = list.iter().filter_map(|pair| {
            let job = pair.any()?;
            let state = match (pair.before, pair.now) {
                (Some(before), Some(now)) if before.status != now.status => {
                    format!("{} -> {}", before.status_words(), now.status_words())
                }
                _ => job.status_words().to_owned(),
            };
            let build = format!("build {}", job.build);
            Some(vec![
                format!("  {}", job.job),
                job.system.clone(),
                build,
                state,
            ])
        });
        print!("{}", table::table(&rows.collect::<Vec<_>>()));
    }
    println!("\nstill succeeding: {}", found.still_succeeding);
}

// ---- cancel and restart

fn cancel(args: &CancelArgs) -> Result<ExitCode> {
    let (_, mut client) = connect(&args.write.state)?;
    let evaluation = find(&mut client, &args.which)?;
    let jobs = results::jobs(&mut client, evaluation.id)?;
    let ids: Vec<i32> = jobs
        .iter()
        .filter(|job| job.status.is_none())
        .map(|job| job.build)
        .collect();
    let done = match args.write.dry_run || ids.is_empty() {
        true => ids.len(),
        false => changed(operate::cancel(&mut client, &ids, now())?)?.0,
    };
    report_builds(&args.write, "cancel", &evaluation, &ids, done, None);
    Ok(ExitCode::SUCCESS)
}

fn restart(args: &RestartArgs) -> Result<ExitCode> {
    let (settings, mut client) = connect(&args.write.state)?;
    let evaluation = find(&mut client, &args.which)?;
    let wanted = if args.aborted { ABORTED } else { FAILED };
    let jobs = results::jobs(&mut client, evaluation.id)?;
    let ids: Vec<i32> = jobs
        .iter()
        .filter(|job| job.status.is_some_and(wanted))
        .map(|job| job.build)
        .collect();
    let (done, cleared) = match args.write.dry_run || ids.is_empty() {
        true => (ids.len(), 0),
        false => {
            if !args.force {
                let found = operate::look_up(&mut client, &ids)?;
                if let Changed::Done(found) = &found {
                    keep_derivations(&settings, found.changed.iter())?;
                }
            }
            changed(operate::restart(&mut client, &ids)?)?
        }
    };
    report_builds(
        &args.write,
        "restart",
        &evaluation,
        &ids,
        done,
        Some(cleared),
    );
    Ok(ExitCode::SUCCESS)
}

/// How many builds were changed, and how many recorded failures forgotten.
fn changed(changed: Changed) -> Result<(usize, u64)> {
    match changed {
        Changed::Done(done) => Ok((done.changed.len(), done.failures_cleared)),
        Changed::Unknown(ids) => anyhow::bail!(
            "builds of this evaluation were deleted meanwhile (build {}); nothing was changed",
            ids.first().copied().unwrap_or(0)
        ),
    }
}

fn report_builds(
    args: &WriteArgs,
    action: &str,
    evaluation: &Evaluation,
    ids: &[i32],
    done: usize,
    cleared: Option<u64>,
) {
    if args.json {
        let mut object = json!({"action": action, "dryRun": args.dry_run, "evaluation": evaluation.id,
            "jobset": evaluation.jobset_name(), "builds": ids, "changed": if args.dry_run { 0 } else { done }});
        if let Some(cleared) = cleared {
            object["failuresCleared"] = json!(cleared);
        }
        println!("{object}");
        return;
    }
    let words = match (action, args.dry_run) {
        ("cancel", true) => "would be cancelled",
        ("cancel", false) => "are cancelled",
        (_, true) => "would be queued again",
        (_, false) => "are queued again",
    };
    println!(
        "{done} builds of evaluation {} of {} {words}",
        evaluation.id,
        evaluation.jobset_name()
    );
    if let Some(cleared) = cleared.filter(|cleared| *cleared > 0) {
        println!("{cleared} recorded failures forgotten");
    }
    if done < ids.len() && !args.dry_run {
        println!(
            "{} had changed meanwhile and were left alone",
            ids.len() - done
        );
    }
}
