//! `hydrad jobset evaluate`: has a jobset evaluated now, and waits for what comes of it.
//!
//! What counts is the row of the jobset: an evaluator takes the wish away when it has done it. Notifications say earlier
//! that something has happened, and which evaluation came of it.

use std::collections::HashSet;
use std::io::IsTerminal as _;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{bail, Context as _, Result};
use postgres::Client;
use serde_json::{json, Value};

use super::change::{
    connect, find_jobset, find_project, now, refuse, transact, JobsetName, WriteArgs,
    APPLICATION_NAME,
};
use crate::admin::clear_failed::age;
use crate::admin::evaluator_status::words_about;
use crate::admin::table;
use crate::config::declarative::JOBSETS;
use crate::config::settings::Service;
use crate::db::jobsets::{self, StoredJobset};
use crate::db::locks;
use crate::db::results::{self, Evaluation};
use crate::db::{DbError, DbTarget, Listener, Notification};

/// How often --wait looks by itself, should a notification not come.
const LOOK_EVERY: Duration = Duration::from_secs(2);
/// Traces of evaluations that --wait remembers at most.
const TRACES_MAX: usize = 1_000;

/// Evaluate a jobset now
///
/// Tells the evaluator, whichever it is, and returns. With --wait, shows what it does and ends with what came of it.
#[derive(clap::Args, Debug)]
#[command(
    after_help = "Exit code: 0; with --wait 1 if something could not be fetched or evaluated, or the time was over; 2 if it cannot be
evaluated (it or its project is disabled, or with --wait no evaluator is there).

Examples:
  hydrad jobset evaluate tools:trunk
  hydrad jobset evaluate tools:trunk --force --wait     also if nothing has changed
  hydrad jobset evaluate tools:trunk --wait --json | jq .evaluation"
)]
pub struct EvaluateArgs {
    #[command(flatten)]
    pub write: WriteArgs,
    /// Evaluate also if no input has changed
    #[arg(long)]
    pub force: bool,
    /// Wait until it has been evaluated
    #[arg(long, short)]
    pub wait: bool,
    /// With --wait: wait at most this long (90, 15m, 12h), also for an evaluator that is not there yet
    #[arg(long, value_name = "AGE", requires = "wait", value_parser = age)]
    pub timeout: Option<Duration>,
    #[arg(value_name = "PROJECT:JOBSET")]
    pub name: JobsetName,
}

/// What is known when the wish is written.
struct Asked {
    jobset: StoredJobset,
    /// The time of the wish.
    trigger: i32,
    /// The newest evaluation then.
    newest: i32,
    /// It makes the project's other jobsets.
    makes_jobsets: bool,
}

/// # Errors
/// When it cannot be evaluated, or the waiting cannot go on.
pub fn run(args: &EvaluateArgs) -> Result<ExitCode> {
    let (settings, mut client) = connect(&args.write.state)?;
    let target = args.write.state.target(&settings)?;
    // Listening begins before the wish is there: nothing that comes of it is missed.
    let mut listener = match args.wait && !args.write.dry_run {
        true => Some(Listener::connect(
            &target,
            APPLICATION_NAME,
            &["eval_started", "eval_added", "eval_cached", "eval_failed"],
        )?),
        false => None,
    };
    let evaluator = evaluator(&mut client)?;
    let asked = transact(&mut client, !args.write.dry_run, |tx| {
        let project = find_project(tx, &args.name.project)?;
        jobsets::lock_jobsets(tx, &args.name.project, Some(&args.name.jobset))?;
        let jobset = find_jobset(tx, &args.name)?;
        if !project.settings.enabled {
            return refuse(format!(
                "{} is not evaluated: its project is disabled; `hydrad project edit {} --enabled true`",
                args.name, project.name
            ));
        }
        if jobset.settings.enabled == Some(0) {
            return refuse(format!(
                "{0} is not evaluated: it is disabled; `hydrad jobset edit {0} --enabled enabled` (or one-shot)",
                args.name
            ));
        }
        // An evaluation in progress takes away wishes up to the second of its start.
        let trigger = jobset
            .started
            .map_or(now(), |started| now().max(started + 1));
        jobsets::trigger_jobset(tx, jobset.id, trigger, args.force)?;
        Ok(Asked {
            newest: results::newest(tx, jobset.id)?,
            makes_jobsets: project.settings.declarative.is_some() && jobset.name == JOBSETS,
            jobset,
            trigger,
        })
    })?;
    match &mut listener {
        None => {
            report_asked(args, &asked, evaluator.as_deref());
            Ok(ExitCode::SUCCESS)
        }
        Some(listener) => {
            if evaluator.is_none() && args.timeout.is_none() {
                bail!(
                    "{} is to be evaluated, but {NO_EVALUATOR}; it will be when one starts. --timeout waits for that",
                    args.name
                );
            }
            wait(
                args,
                &target,
                &mut client,
                listener,
                &asked,
                evaluator.is_some(),
            )
        }
    }
}

const NO_EVALUATOR: &str =
    "no evaluator works on this database (`hydrad evaluator` is one; a hydra-evaluator that was started by hand has no name to \
     be seen by)";

/// Who evaluates on this database.
fn evaluator(client: &mut Client) -> Result<Option<String>, DbError> {
    let mut sessions = locks::holders(client, Service::Evaluator)?;
    sessions.extend(locks::foreign_sessions(client, Service::Evaluator)?);
    Ok(sessions.first().map(ToString::to_string))
}

fn report_asked(args: &EvaluateArgs, asked: &Asked, evaluator: Option<&str>) {
    let dry_run = args.write.dry_run;
    if args.write.json {
        println!(
            "{}",
            json!({"jobset": args.name.to_string(), "dryRun": dry_run, "triggerTime": asked.trigger, "forced": args.force,
                "evaluator": evaluator})
        );
        return;
    }
    let would = if dry_run { "would be" } else { "is to be" };
    let force = if args.force {
        ", also if nothing has changed"
    } else {
        ""
    };
    println!("{} {would} evaluated now{force}", args.name);
    if asked.jobset.started.is_some() {
        println!("(it is being evaluated; the next one begins when that has ended)");
    }
    if evaluator.is_none() {
        eprintln!("hydrad: {NO_EVALUATOR}");
    }
}

// ---- waiting

/// What a notification says of our evaluation.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Heard {
    Nothing,
    Added(i32),
    Unchanged,
    Failed,
}

/// What came of it.
enum Outcome {
    Evaluated(Box<Evaluation>),
    /// Nothing has changed since the last one.
    Unchanged,
    /// A specification that names all jobsets was carried out; that is no evaluation, and nothing is announced.
    Applied,
    FetchFailed(String),
    Failed(String),
}

fn wait(
    args: &EvaluateArgs,
    target: &DbTarget,
    client: &mut Client,
    listener: &mut Listener,
    asked: &Asked,
    mut has_evaluator: bool,
) -> Result<ExitCode> {
    let mut traces = HashSet::new();
    // What was announced before the wish is about another evaluation.
    while listener.next(Duration::ZERO)?.is_some() {}
    let until = args.timeout.map(|timeout| Instant::now() + timeout);
    let progress = Progress::new();
    let mut heard = Heard::Nothing;
    loop {
        let found = jobsets::jobsets(client, Some(&args.name.project), Some(&args.name.jobset))?;
        let jobset = found
            .into_iter()
            .find(|jobset| jobset.id == asked.jobset.id)
            .with_context(|| format!("{} was deleted or renamed meanwhile", args.name))?;
        let is_done = jobset.started.is_none() && jobset.triggered != Some(asked.trigger);
        if is_done || heard != Heard::Nothing {
            // What was announced together with the row.
            while heard == Heard::Nothing {
                let Some(notice) = listener.next(Duration::ZERO)? else {
                    break;
                };
                heard = hear(&notice, asked.jobset.id, &mut traces).unwrap_or(heard);
            }
            progress.end();
            let outcome = outcome(client, asked, &jobset, heard)?;
            return Ok(report_outcome(args, &outcome));
        }
        if !has_evaluator {
            has_evaluator = evaluator(client)?.is_some();
        }
        let detail = match progress.on_terminal {
            true => words_about(target, client, APPLICATION_NAME, jobset.id)?,
            false => None,
        };
        progress.show(&stage(&jobset, asked, has_evaluator), detail.as_deref());
        let mut left = LOOK_EVERY;
        if let Some(until) = until {
            left = left.min(until.saturating_duration_since(Instant::now()));
            if left.is_zero() {
                progress.end();
                bail_in_time(args, &jobset, asked, has_evaluator);
                return Ok(ExitCode::FAILURE);
            }
        }
        let next = Instant::now() + left;
        while let Some(left) = next.checked_duration_since(Instant::now()) {
            let Some(notice) = listener.next(left)? else {
                break;
            };
            match hear(&notice, asked.jobset.id, &mut traces) {
                None => {}
                Some(said) => {
                    heard = said;
                    break;
                }
            }
        }
    }
}

/// What a notification says of our jobset; `None` if it is about something else.
fn hear(notice: &Notification, jobset: i32, traces: &mut HashSet<String>) -> Option<Heard> {
    let mut fields = notice.payload.split('\t');
    let trace = fields.next()?;
    let is_ours = fields.next()?.parse() == Ok(jobset);
    if !is_ours {
        return None;
    }
    if notice.channel == "eval_started" {
        if traces.len() < TRACES_MAX {
            traces.insert(trace.to_owned());
        }
        return Some(Heard::Nothing);
    }
    if !traces.contains(trace) {
        return None;
    }
    match notice.channel.as_str() {
        "eval_added" => fields.next()?.parse().ok().map(Heard::Added),
        "eval_cached" => Some(Heard::Unchanged),
        "eval_failed" => Some(Heard::Failed),
        _ => None,
    }
}

fn stage(jobset: &StoredJobset, asked: &Asked, has_evaluator: bool) -> String {
    match jobset.started {
        Some(started) if started >= asked.trigger || asked.jobset.started != Some(started) => {
            "being evaluated".to_owned()
        }
        Some(_) => "waiting for the end of an earlier evaluation".to_owned(),
        None if has_evaluator => "waiting for its turn".to_owned(),
        None => "waiting for an evaluator to start".to_owned(),
    }
}

/// Says why nothing has come of it in time.
fn bail_in_time(args: &EvaluateArgs, jobset: &StoredJobset, asked: &Asked, has_evaluator: bool) {
    let stage = stage(jobset, asked, has_evaluator);
    if args.write.json {
        println!(
            "{}",
            json!({"jobset": args.name.to_string(), "outcome": "timeout", "stage": stage})
        );
    }
    eprintln!(
        "hydrad: the time is over: {} is still {stage}; it will be evaluated nevertheless",
        args.name
    );
}

fn outcome(
    client: &mut Client,
    asked: &Asked,
    jobset: &StoredJobset,
    heard: Heard,
) -> Result<Outcome> {
    let text = |text: &Option<String>| text.clone().filter(|text| !text.is_empty());
    let failed = || match (text(&jobset.fetch_error), text(&jobset.error)) {
        (Some(error), _) => Outcome::FetchFailed(error),
        (None, Some(error)) => Outcome::Failed(error),
        (None, None) => Outcome::Failed("the evaluator gives no reason".to_owned()),
    };
    let evaluation = match heard {
        Heard::Failed => return Ok(failed()),
        Heard::Unchanged => return Ok(Outcome::Unchanged),
        Heard::Added(id) => Some(id),
        Heard::Nothing => {
            let newest = results::newest(client, jobset.id)?;
            (newest > asked.newest).then_some(newest)
        }
    };
    if let Some(id) = evaluation {
        let evaluation = results::evaluation(client, id)?;
        let evaluation = evaluation.with_context(|| format!("evaluation {id} was deleted"))?;
        return Ok(Outcome::Evaluated(Box::new(evaluation)));
    }
    let has_failed = text(&jobset.fetch_error).is_some()
        || jobset.error_time != asked.jobset.error_time && text(&jobset.error).is_some();
    Ok(match (has_failed, asked.makes_jobsets) {
        (true, _) => failed(),
        (false, true) => Outcome::Applied,
        (false, false) => Outcome::Unchanged,
    })
}

fn report_outcome(args: &EvaluateArgs, outcome: &Outcome) -> ExitCode {
    let name = args.name.to_string();
    let (word, evaluation, error) = match outcome {
        Outcome::Evaluated(evaluation) => (
            "evaluated",
            Some(evaluation.as_ref()),
            Some(evaluation.error.as_str()).filter(|error| !error.is_empty()),
        ),
        Outcome::Unchanged => ("unchanged", None, None),
        Outcome::Applied => ("applied", None, None),
        Outcome::FetchFailed(error) => ("fetch failed", None, Some(error.as_str())),
        Outcome::Failed(error) => ("failed", None, Some(error.as_str())),
    };
    if args.write.json {
        let counts = evaluation.map(|evaluation| evaluation.counts);
        let value: Value = json!({"jobset": name, "outcome": word, "evaluation": evaluation.map(|e| e.id),
            "changed": evaluation.map(|e| e.changed), "builds": counts.map(|c| c.all), "newBuilds": counts.map(|c| c.new),
            "error": error});
        println!("{value}");
    } else {
        match outcome {
            Outcome::Evaluated(evaluation) if evaluation.changed => println!(
                "{name}: evaluation {}, {} builds, {} of them new, after {} of evaluating",
                evaluation.id,
                evaluation.counts.all,
                evaluation.counts.new,
                table::duration(evaluation.evaluating_secs.into())
            ),
            Outcome::Evaluated(evaluation) => println!(
                "{name}: evaluation {}, with the same builds as before",
                evaluation.id
            ),
            Outcome::Unchanged => println!(
                "{name}: nothing has changed, so nothing was evaluated (--force does it nevertheless)"
            ),
            Outcome::Applied => println!("{name}: its jobsets are as the specification says"),
            Outcome::FetchFailed(_) => println!("{name}: an input could not be fetched"),
            Outcome::Failed(_) => println!("{name}: the evaluation failed"),
        }
        if let Some(error) = error {
            println!("\n{}", error.trim_end());
        }
    }
    match error {
        None => ExitCode::SUCCESS,
        Some(_) => ExitCode::FAILURE,
    }
}

/// A line that says what is being waited for; on a terminal with the time, and with what hydrad's evaluator tells of it.
struct Progress {
    bar: indicatif::ProgressBar,
    said: std::cell::RefCell<String>,
    on_terminal: bool,
}

impl Progress {
    fn new() -> Progress {
        let on_terminal = std::io::stderr().is_terminal();
        let bar = match on_terminal {
            true => indicatif::ProgressBar::new_spinner(),
            false => indicatif::ProgressBar::hidden(),
        };
        if let Ok(style) = indicatif::ProgressStyle::with_template("{spinner} {elapsed} {msg}") {
            bar.set_style(style);
        }
        bar.enable_steady_tick(Duration::from_millis(250));
        Progress {
            bar,
            said: Default::default(),
            on_terminal,
        }
    }

    /// `detail` is what changes all the time.
    fn show(&self, stage: &str, detail: Option<&str>) {
        self.bar.set_message(detail.unwrap_or(stage).to_owned());
        if !self.on_terminal && *self.said.borrow() != stage {
            eprintln!("{stage}");
            stage.clone_into(&mut self.said.borrow_mut());
        }
    }

    fn end(&self) {
        self.bar.finish_and_clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_an_evaluation_of_this_jobset_that_began_later_counts() {
        let mut traces = HashSet::new();
        let mut told = |channel: &str, payload: &str| {
            let notice = Notification {
                channel: channel.into(),
                payload: payload.into(),
                sender_pid: 1,
            };
            hear(&notice, 7, &mut traces)
        };
        assert_eq!(told("eval_added", "1.1\t7\t50"), None, "began earlier");
        assert_eq!(told("eval_started", "2.1\t8"), None, "another jobset");
        assert_eq!(told("eval_started", "3.1\t7"), Some(Heard::Nothing));
        assert_eq!(told("eval_cached", "2.1\t8\t50"), None);
        for odd in ["", "3.1", "3.1\tx", "3.1\t7\tx"] {
            assert_eq!(told("eval_added", odd), None, "{odd:?}");
        }
        assert_eq!(told("eval_added", "3.1\t7\t51"), Some(Heard::Added(51)));
        assert_eq!(told("eval_failed", "3.1\t7"), Some(Heard::Failed));
    }
}
