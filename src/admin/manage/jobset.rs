//! `hydrad jobset`.

use std::process::ExitCode;

use anyhow::Result;
use serde_json::{json, Value};

use super::change::{
    change_jobset, confirm, connect, find_jobset, find_project, refuse, refuse_declarative, report,
    transact, Expect, JobsetName, ReadArgs, Trouble, WriteArgs,
};
use super::evaluate::{self, EvaluateArgs};
use super::project::{doomed, note_rename};
use crate::admin::table;
use crate::base::text::clip;
use crate::config::declarative::{JobsetSpec, SpecInput};
use crate::config::fields::words;
use crate::config::project::{check_jobset_name, enabled_word, tidy_jobset, ENABLED_WORDS};
use crate::db::jobsets::{self, Standing, StoredJobset};
use crate::sys::clock::unix_now;

/// The column of remarks in a list.
const REMARK_BYTES_MAX: usize = 60;

/// Create, change, delete, show and evaluate jobsets
///
/// The same rows that Hydra's web server writes, under the same rules.
#[derive(clap::Args, Debug)]
pub struct JobsetArgs {
    #[command(subcommand)]
    pub action: JobsetAction,
}

#[derive(clap::Subcommand, Debug)]
pub enum JobsetAction {
    Create(CreateArgs),
    Edit(EditArgs),
    Delete(DeleteArgs),
    List(ListArgs),
    Show(ShowArgs),
    Evaluate(EvaluateArgs),
}

/// Create a jobset
///
/// Either a flake, or a file of an input with further inputs as its arguments. It is evaluated soon, and then whenever its
/// inputs have changed.
#[derive(clap::Args, Debug)]
#[command(after_help = "Examples:
  hydrad jobset create website:main --flake github:example/website
  hydrad jobset create tools:trunk --nixexprinput src --nixexprpath release.nix \\
      --input src git 'https://example.org/tools.git main' \\
      --input nixpkgs git 'https://github.com/NixOS/nixpkgs nixos-unstable-small' \\
      --input release boolean false
  hydrad jobset create tools:once --flake github:example/tools --enabled one-shot")]
pub struct CreateArgs {
    #[command(flatten)]
    pub write: WriteArgs,
    #[command(flatten)]
    pub settings: SettingsArgs,
    /// An input: name, type and value (`hydrad input create` explains them)
    #[arg(long, num_args = 3, value_names = ["NAME", "TYPE", "VALUE"], action = clap::ArgAction::Append)]
    pub input: Vec<String>,
    #[arg(value_name = "PROJECT:JOBSET")]
    pub name: JobsetName,
}

/// Change a jobset
///
/// What is not named stays as it is. As after an edit in Hydra's web interface, it is evaluated soon if it is enabled and has
/// an interval; without an interval a pending evaluation is called off.
#[derive(clap::Args, Debug)]
#[command(after_help = "Examples:
  hydrad jobset edit tools:trunk --checkinterval 3600 --keepnr 10
  hydrad jobset edit tools:trunk --enabled disabled
  hydrad jobset edit tools:trunk --flake github:example/tools --dry-run
  hydrad jobset edit tools:trunk --rename main

Inputs: hydrad input create, edit and delete.")]
pub struct EditArgs {
    #[command(flatten)]
    pub write: WriteArgs,
    #[command(flatten)]
    pub settings: SettingsArgs,
    /// Another name; builds go with it, and the web server finds it under the old one too
    #[arg(long, value_name = "NAME")]
    pub rename: Option<String>,
    #[arg(value_name = "PROJECT:JOBSET")]
    pub name: JobsetName,
}

#[derive(clap::Args, Debug)]
pub struct SettingsArgs {
    /// disabled (0), enabled (1), one-shot (2: one evaluation, then disabled) or one-at-a-time (3: the next evaluation when
    /// all builds of the last have ended)
    #[arg(long, value_name = "HOW", value_parser = enabled_number)]
    pub enabled: Option<i32>,
    /// Whether web pages leave it out
    #[arg(long, value_name = "BOOL")]
    pub hidden: Option<bool>,
    #[arg(long, value_name = "TEXT")]
    pub description: Option<String>,
    /// Evaluate this flake
    #[arg(long, value_name = "URI", conflicts_with_all = ["nixexprinput", "nixexprpath"])]
    pub flake: Option<String>,
    /// The input whose file is evaluated
    #[arg(long, value_name = "INPUT")]
    pub nixexprinput: Option<String>,
    /// The file that is evaluated, in that input
    #[arg(long, value_name = "PATH")]
    pub nixexprpath: Option<String>,
    /// Seconds between two looks at the inputs; 0: only when told to (300 for a new jobset)
    #[arg(long, value_name = "SECS", value_parser = clap::value_parser!(i32).range(0..))]
    pub checkinterval: Option<i32>,
    /// Its share of the machines, beside other jobsets' (100 for a new jobset)
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(i32).range(1..))]
    pub schedulingshares: Option<i32>,
    /// So many evaluations are kept from the garbage collector (3 for a new jobset)
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(i32).range(0..))]
    pub keepnr: Option<i32>,
    /// Whether maintainers get mail about failures
    #[arg(long, value_name = "BOOL")]
    pub enableemail: Option<bool>,
    /// Who gets mail instead of the maintainers, with commas between
    #[arg(long, value_name = "ADDRESSES")]
    pub emailoverride: Option<String>,
    /// Whether jobs named `runCommandHook.*` are run when built; server and project must allow it
    #[arg(long, value_name = "BOOL")]
    pub enable_dynamic_run_command: Option<bool>,
}

fn enabled_number(text: &str) -> Result<i32, String> {
    let word = ENABLED_WORDS.iter().position(|word| *word == text);
    let number = word.or_else(|| text.parse().ok().filter(|n| *n < ENABLED_WORDS.len()));
    let number = match text {
        "false" => Some(0),
        "true" => Some(1),
        _ => number,
    };
    number
        .and_then(|number| i32::try_from(number).ok())
        .ok_or_else(|| format!("expected {}, or their number", ENABLED_WORDS.join(", ")))
}

impl SettingsArgs {
    /// What is said, with the inputs as they are. (A flake has none, as in the web interface.)
    fn spec(&self, before: Option<&JobsetSpec>) -> Result<JobsetSpec, Trouble> {
        let says_expression = self.nixexprinput.is_some() || self.nixexprpath.is_some();
        let inputs = before.map(|before| before.inputs.clone());
        let spec = JobsetSpec {
            enabled: self.enabled,
            hidden: self.hidden.map(i32::from),
            kind: match self.flake {
                Some(_) => Some(1),
                None => says_expression.then_some(0),
            },
            flake: self.flake.clone(),
            description: self.description.clone(),
            nix_expr_input: self.nixexprinput.clone(),
            nix_expr_path: self.nixexprpath.clone(),
            check_interval: self.checkinterval,
            scheduling_shares: self.schedulingshares,
            enable_email: self.enableemail.map(i32::from),
            enable_dynamic_run_command: self.enable_dynamic_run_command,
            email_override: self.emailoverride.clone(),
            keep_evaluations: self.keepnr,
            inputs: Default::default(),
        };
        // The rules are for what is said now, not for inputs that are there.
        let mut spec = tidy_jobset(spec)?;
        if self.flake.is_none() {
            spec.inputs = inputs.unwrap_or_default();
        }
        Ok(spec)
    }
}

/// Delete a jobset with its evaluations and builds
///
/// Shows what goes, and asks. Running steps are stopped. Outputs in the store and logs stay until they are collected.
#[derive(clap::Args, Debug)]
#[command(
    after_help = "To only stop it: hydrad jobset edit PROJECT:JOBSET --enabled disabled --hidden true"
)]
pub struct DeleteArgs {
    #[command(flatten)]
    pub write: WriteArgs,
    /// Do not ask
    #[arg(long)]
    pub yes: bool,
    #[arg(value_name = "PROJECT:JOBSET")]
    pub name: JobsetName,
}

/// List jobsets, and how they stand
#[derive(clap::Args, Debug)]
pub struct ListArgs {
    #[command(flatten)]
    pub read: ReadArgs,
    /// Hidden ones too
    #[arg(long, short)]
    pub all: bool,
    /// Only of this project
    #[arg(value_name = "PROJECT")]
    pub project: Option<String>,
}

/// Show a jobset: what is set, its inputs, how it stands, and its error
#[derive(clap::Args, Debug)]
#[command(after_help = "Its evaluations: `hydrad eval list PROJECT:JOBSET`.")]
pub struct ShowArgs {
    #[command(flatten)]
    pub read: ReadArgs,
    #[arg(value_name = "PROJECT:JOBSET")]
    pub name: JobsetName,
}

/// # Errors
/// When it cannot be done.
pub fn run(args: &JobsetArgs) -> Result<ExitCode> {
    match &args.action {
        JobsetAction::Create(args) => create(args),
        JobsetAction::Edit(args) => edit(args),
        JobsetAction::Delete(args) => delete(args),
        JobsetAction::List(args) => list(args),
        JobsetAction::Show(args) => show(args),
        JobsetAction::Evaluate(args) => evaluate::run(args),
    }
}

fn create(args: &CreateArgs) -> Result<ExitCode> {
    let (settings, mut client) = connect(&args.write.state)?;
    let dynamic = settings.dynamic_run_command;
    let say = |_: Option<&JobsetSpec>| {
        let mut spec = args.settings.spec(None)?;
        if spec.kind == Some(1) && !args.input.is_empty() {
            return refuse("a flake has its own inputs; leave --input out".to_owned());
        }
        for input in args.input.chunks_exact(3) {
            let made = SpecInput {
                kind: input[1].clone(),
                value: Some(input[2].clone()),
                email_responsible: false,
            };
            if spec.inputs.insert(input[0].clone(), made).is_some() {
                return refuse(format!("--input {}: there are two of that name", input[0]));
            }
        }
        Ok(tidy_jobset(spec)?)
    };
    let change = transact(&mut client, !args.write.dry_run, |tx| {
        change_jobset(tx, &args.name, &say, Expect::New, dynamic)
    })?;
    report(&args.write, &[change]);
    Ok(ExitCode::SUCCESS)
}

fn edit(args: &EditArgs) -> Result<ExitCode> {
    let (settings, mut client) = connect(&args.write.state)?;
    let dynamic = settings.dynamic_run_command;
    let say = |before: Option<&JobsetSpec>| args.settings.spec(before);
    let change = transact(&mut client, !args.write.dry_run, |tx| {
        let mut change = change_jobset(tx, &args.name, &say, Expect::There, dynamic)?;
        if let Some(to) = args.rename.as_ref().filter(|to| **to != args.name.jobset) {
            check_jobset_name(to)?;
            let project = args.name.project.as_str();
            if !jobsets::jobsets(tx, Some(project), Some(to))?.is_empty() {
                return refuse(format!("there is a jobset `{project}:{to}` already"));
            }
            jobsets::rename_jobset(tx, project, &args.name.jobset, to)?;
            note_rename(&mut change, &args.name.jobset, to);
        }
        Ok(change)
    })?;
    report(&args.write, &[change]);
    Ok(ExitCode::SUCCESS)
}

fn delete(args: &DeleteArgs) -> Result<ExitCode> {
    let (_, mut client) = connect(&args.write.state)?;
    let name = args.name.to_string();
    let gone = |tx: &mut postgres::Transaction<'_>| {
        jobsets::share_project(tx, &args.name.project)?;
        let project = find_project(tx, &args.name.project)?;
        refuse_declarative(&project.name, project.settings.declarative.is_some())?;
        jobsets::lock_jobsets(tx, &args.name.project, Some(&args.name.jobset))?;
        let jobset = find_jobset(tx, &args.name)?;
        doomed(tx, "jobset", &name, &[jobset])
    };
    let (_, change) = transact(&mut client, false, gone)?;
    if !args.write.dry_run {
        if !args.yes {
            eprint!("{change}");
        }
        confirm(args.yes, "Delete it?")?;
        transact(&mut client, true, |tx| {
            let (ids, _) = gone(tx)?;
            Ok(jobsets::delete_jobsets(tx, &ids)?)
        })?;
    }
    report(&args.write, &[change]);
    Ok(ExitCode::SUCCESS)
}

fn list(args: &ListArgs) -> Result<ExitCode> {
    let (_, mut client) = connect(&args.read.state)?;
    let project = args.project.as_deref();
    let (mut stored, standings) = transact(&mut client, false, |tx| {
        if let Some(project) = project {
            find_project(tx, project)?;
        }
        let stored = jobsets::jobsets(tx, project, None)?;
        Ok((stored, jobsets::standings(tx, project)?))
    })?;
    stored.retain(|jobset| args.all || jobset.settings.hidden == Some(0));
    let standing = |jobset: &StoredJobset| standings.get(&jobset.id).copied().unwrap_or_default();
    if args.read.json {
        let list = stored.iter();
        let list: Vec<Value> = list
            .map(|jobset| jobset_json(jobset, standing(jobset)))
            .collect();
        println!("{}", json!({ "jobsets": list }));
    } else if stored.is_empty() {
        println!("no jobsets; `hydrad jobset create` makes one, --all shows hidden ones");
    } else {
        print!("{}", table::table(&jobset_rows(&stored, standing)));
    }
    Ok(ExitCode::SUCCESS)
}

/// A jobset under the keys of a specification, with what programs record of it.
pub fn jobset_json(jobset: &StoredJobset, standing: Standing) -> Value {
    let mut object = jobset.settings.as_json();
    let more = json!({"project": jobset.project, "name": jobset.name, "id": jobset.id,
        "lastCheckedTime": jobset.last_checked, "triggerTime": jobset.triggered, "startTime": jobset.started,
        "errorTime": jobset.error_time, "errorMsg": jobset.error, "fetchErrorMsg": jobset.fetch_error,
        "forceEval": jobset.forced, "latestEval": standing.evaluation, "queued": standing.queued});
    if let (Some(object), Value::Object(more)) = (object.as_object_mut(), more) {
        object.extend(more);
    }
    object
}

/// Jobsets as the rows of a table.
pub fn jobset_rows(
    stored: &[StoredJobset],
    standing: impl Fn(&StoredJobset) -> Standing,
) -> Vec<Vec<String>> {
    let headings = [
        "jobset",
        "state",
        "source",
        "interval",
        "shares",
        "checked",
        "evaluation",
        "queued",
        "remark",
    ];
    let mut rows = vec![headings.map(str::to_owned).to_vec()];
    for jobset in stored {
        let (settings, standing) = (&jobset.settings, standing(jobset));
        let hidden = match settings.hidden {
            Some(0) | None => "",
            Some(_) => ", hidden",
        };
        rows.push(vec![
            jobset.full_name(),
            format!("{}{hidden}", enabled_word(settings.enabled.unwrap_or(0))),
            source_words(settings),
            match settings.check_interval {
                Some(secs) if secs > 0 => table::duration(secs.into()),
                _ => "-".to_owned(),
            },
            settings.scheduling_shares.unwrap_or(0).to_string(),
            ago(jobset.last_checked).unwrap_or_else(|| "never".to_owned()),
            standing
                .evaluation
                .map_or_else(|| "-".to_owned(), |id| id.to_string()),
            standing.queued.to_string(),
            remark(jobset),
        ]);
    }
    rows
}

fn source_words(settings: &JobsetSpec) -> String {
    let text = |text: &Option<String>| text.clone().unwrap_or_default();
    match settings.kind {
        Some(1) => text(&settings.flake),
        _ => format!(
            "{}/{}",
            text(&settings.nix_expr_input),
            text(&settings.nix_expr_path)
        ),
    }
}

/// How long a time of a row is ago.
pub fn ago(time: Option<i32>) -> Option<String> {
    let secs = unix_now() - i64::from(time?);
    Some(format!("{} ago", table::duration(secs.max(0))))
}

/// The most important thing about a jobset at the moment.
fn remark(jobset: &StoredJobset) -> String {
    let first_line = |text: &str| clip(text.lines().next().unwrap_or(""), REMARK_BYTES_MAX);
    let error = |text: &Option<String>| text.clone().filter(|text| !text.is_empty());
    if let Some(since) = jobset.started {
        let secs = (unix_now() - i64::from(since)).max(0);
        return format!("being evaluated for {}", table::duration(secs));
    }
    if jobset.triggered.is_some() {
        return "to be evaluated".to_owned();
    }
    if let Some(text) = error(&jobset.fetch_error) {
        return format!("cannot fetch: {}", first_line(&text));
    }
    match error(&jobset.error) {
        Some(text) => format!("error: {}", first_line(&text)),
        None => String::new(),
    }
}

fn show(args: &ShowArgs) -> Result<ExitCode> {
    let (_, mut client) = connect(&args.read.state)?;
    let (jobset, standing) = transact(&mut client, false, |tx| {
        let jobset = find_jobset(tx, &args.name)?;
        let standing = jobsets::standings(tx, Some(&args.name.project))?;
        let standing = standing.get(&jobset.id).copied().unwrap_or_default();
        Ok((jobset, standing))
    })?;
    if args.read.json {
        println!("{}", jobset_json(&jobset, standing));
        return Ok(ExitCode::SUCCESS);
    }
    println!("jobset {}\n", jobset.full_name());
    let mut rows: Vec<Vec<String>> = Vec::new();
    for (key, value) in jobset.settings.fields() {
        let value = match key.as_str() {
            "enabled" => enabled_word(jobset.settings.enabled.unwrap_or(0)).to_owned(),
            _ => words(Some(&value)),
        };
        rows.push(vec![key, value]);
    }
    println!("{}", table::table(&rows));
    let none = || "-".to_owned();
    let rows = [
        ("checked", ago(jobset.last_checked)),
        ("evaluation wanted since", ago(jobset.triggered)),
        ("being evaluated since", ago(jobset.started)),
        (
            "newest evaluation",
            standing.evaluation.map(|id| id.to_string()),
        ),
        ("queued builds", Some(standing.queued.to_string())),
        (
            "error",
            jobset
                .error
                .clone()
                .filter(|text| !text.is_empty())
                .and(ago(jobset.error_time)),
        ),
    ];
    let rows = rows.map(|(what, value)| vec![what.to_owned(), value.unwrap_or_else(none)]);
    print!("{}", table::table(&rows));
    for (what, text) in [
        ("Inputs cannot be fetched:", &jobset.fetch_error),
        ("The evaluation's errors:", &jobset.error),
    ] {
        if let Some(text) = text.as_deref().filter(|text| !text.is_empty()) {
            println!("\n{what}\n{}", text.trim_end());
        }
    }
    Ok(ExitCode::SUCCESS)
}
