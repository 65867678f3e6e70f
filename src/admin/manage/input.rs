//! `hydrad input`.

use std::process::ExitCode;

use anyhow::Result;
use serde_json::json;

use super::change::{
    change_jobset, connect, find_jobset, refuse, report, transact, Expect, InputName, JobsetName,
    ReadArgs, Trouble, WriteArgs,
};
use crate::admin::table;
use crate::config::declarative::{JobsetSpec, SpecInput};
use crate::config::project::{check_input_name, tidy_input};

/// Create, change, delete and show inputs of jobsets
///
/// The same rows that Hydra's web server writes, under the same rules. A change has the jobset evaluated soon, if it is enabled
/// and has an interval.
#[derive(clap::Args, Debug)]
pub struct InputArgs {
    #[command(subcommand)]
    pub action: InputAction,
}

#[derive(clap::Subcommand, Debug)]
pub enum InputAction {
    Create(CreateArgs),
    Edit(EditArgs),
    Delete(DeleteArgs),
    List(ListArgs),
    Show(ShowArgs),
}

const TYPES: &str = "Types and their values (section 23 of the manual says more):
  git                URI [BRANCH] [DEEP] [KEY=VALUE...], as 'https://example.org/x.git main'
  hg                 URI [REVISION]
  svn, svn-checkout  URI [REVISION]
  bzr, bzr-checkout  URI
  darcs              URI
  path               PATH [SECONDS] or URL [SECONDS]
  string             any text
  boolean            true or false
  nix                a Nix expression
  build              the number of a build, or [[PROJECT:]JOBSET:]JOB
  sysbuild           [[PROJECT:]JOBSET:]JOB
  eval               the number of an evaluation, PROJECT:JOBSET or PROJECT:JOBSET:JOB
  githubpulls        OWNER REPOSITORY
  github_refs        OWNER REPOSITORY heads|tags - PREFIX
  gitlabpulls        BASE-URL PROJECT-ID
  bitbucketpulls     OWNER REPOSITORY
  giteapulls         BASE-URL OWNER REPOSITORY
  gitea_refs         BASE-URL OWNER REPOSITORY heads|tags - PREFIX

Examples:
  hydrad input create tools:trunk:nixpkgs git 'https://github.com/NixOS/nixpkgs nixos-unstable'
  hydrad input create tools:trunk:release boolean false
  hydrad input edit tools:trunk:nixpkgs --value 'https://github.com/NixOS/nixpkgs nixos-24.11'
  hydrad input delete tools:trunk:release";

/// Add an input to a jobset
#[derive(clap::Args, Debug)]
#[command(after_help = TYPES)]
pub struct CreateArgs {
    #[command(flatten)]
    pub write: WriteArgs,
    /// Whether its committers get mail about failures
    #[arg(long, value_name = "BOOL", default_value_t = false, action = clap::ArgAction::Set)]
    pub emailresponsible: bool,
    #[arg(value_name = "PROJECT:JOBSET:INPUT")]
    pub name: InputName,
    #[arg(value_name = "TYPE")]
    pub kind: String,
    #[arg(value_name = "VALUE", allow_hyphen_values = true)]
    pub value: String,
}

/// Change an input of a jobset
///
/// What is not named stays as it is.
#[derive(clap::Args, Debug)]
#[command(after_help = TYPES)]
pub struct EditArgs {
    #[command(flatten)]
    pub write: WriteArgs,
    #[arg(long = "type", value_name = "TYPE")]
    pub kind: Option<String>,
    #[arg(long, value_name = "VALUE", allow_hyphen_values = true)]
    pub value: Option<String>,
    /// Whether its committers get mail about failures
    #[arg(long, value_name = "BOOL")]
    pub emailresponsible: Option<bool>,
    /// Another name
    #[arg(long, value_name = "NAME")]
    pub rename: Option<String>,
    #[arg(value_name = "PROJECT:JOBSET:INPUT")]
    pub name: InputName,
}

/// Take an input from a jobset
#[derive(clap::Args, Debug)]
pub struct DeleteArgs {
    #[command(flatten)]
    pub write: WriteArgs,
    #[arg(value_name = "PROJECT:JOBSET:INPUT")]
    pub name: InputName,
}

/// List the inputs of a jobset
#[derive(clap::Args, Debug)]
pub struct ListArgs {
    #[command(flatten)]
    pub read: ReadArgs,
    #[arg(value_name = "PROJECT:JOBSET")]
    pub name: JobsetName,
}

/// Show an input of a jobset
#[derive(clap::Args, Debug)]
pub struct ShowArgs {
    #[command(flatten)]
    pub read: ReadArgs,
    #[arg(value_name = "PROJECT:JOBSET:INPUT")]
    pub name: InputName,
}

/// # Errors
/// When it cannot be done.
pub fn run(args: &InputArgs) -> Result<ExitCode> {
    match &args.action {
        InputAction::Create(args) => create(args),
        InputAction::Edit(args) => edit(args),
        InputAction::Delete(args) => delete(args),
        InputAction::List(args) => list(&args.read, &args.name, None),
        InputAction::Show(args) => list(&args.read, &args.name.jobset, Some(&args.name.input)),
    }
}

/// Changes the inputs of a jobset, which stays as it is otherwise.
fn change(
    write: &WriteArgs,
    jobset: &JobsetName,
    say: impl Fn(&mut JobsetSpec) -> Result<(), Trouble>,
) -> Result<ExitCode> {
    let (_, mut client) = connect(&write.state)?;
    let say = |before: Option<&JobsetSpec>| {
        let mut spec = before.cloned().unwrap_or_default();
        if spec.kind == Some(1) {
            return refuse(format!(
                "{jobset} is a flake, which has its own inputs; `hydrad jobset edit` makes it evaluate a file of an input"
            ));
        }
        say(&mut spec)?;
        Ok(spec)
    };
    let change = transact(&mut client, !write.dry_run, |tx| {
        change_jobset(tx, jobset, &say, Expect::There, false)
    })?;
    report(write, &[change]);
    Ok(ExitCode::SUCCESS)
}

fn missing<T>(name: &InputName) -> Result<T, Trouble> {
    refuse(format!(
        "{0} has no input `{1}`; `hydrad input list {0}` shows what it has",
        name.jobset, name.input
    ))
}

fn create(args: &CreateArgs) -> Result<ExitCode> {
    let name = &args.name.input;
    check_input_name(name)?;
    let mut input = SpecInput {
        kind: args.kind.clone(),
        value: Some(args.value.clone()),
        email_responsible: args.emailresponsible,
    };
    tidy_input(&mut input)?;
    change(&args.write, &args.name.jobset, |spec| {
        match spec.inputs.insert(name.clone(), input.clone()) {
            None => Ok(()),
            Some(_) => refuse(format!(
                "{} has an input `{name}` already; `hydrad input edit` changes it",
                args.name.jobset
            )),
        }
    })
}

fn edit(args: &EditArgs) -> Result<ExitCode> {
    if let Some(to) = &args.rename {
        check_input_name(to)?;
    }
    change(&args.write, &args.name.jobset, |spec| {
        let Some(mut input) = spec.inputs.remove(&args.name.input) else {
            return missing(&args.name);
        };
        let before = input.clone();
        input.kind = args.kind.clone().unwrap_or(input.kind);
        input.value = args.value.clone().or(input.value);
        input.email_responsible = args.emailresponsible.unwrap_or(input.email_responsible);
        if (&input.kind, &input.value) != (&before.kind, &before.value) {
            tidy_input(&mut input)?;
        }
        let to = args.rename.as_ref().unwrap_or(&args.name.input);
        match spec.inputs.insert(to.clone(), input) {
            None => Ok(()),
            Some(_) => refuse(format!("{} has an input `{to}` already", args.name.jobset)),
        }
    })
}

fn delete(args: &DeleteArgs) -> Result<ExitCode> {
    change(&args.write, &args.name.jobset, |spec| {
        match spec.inputs.remove(&args.name.input) {
            Some(_) if spec.nix_expr_input.as_deref() == Some(args.name.input.as_str()) => {
                refuse(format!(
                    "{} evaluates a file of the input `{}`; name another with `hydrad jobset edit --nixexprinput` first",
                    args.name.jobset, args.name.input
                ))
            }
            Some(_) => Ok(()),
            None => missing(&args.name),
        }
    })
}

/// The inputs of a jobset, or one of them.
fn list(read: &ReadArgs, jobset: &JobsetName, only: Option<&String>) -> Result<ExitCode> {
    let (_, mut client) = connect(&read.state)?;
    let inputs = transact(&mut client, false, |tx| {
        let mut inputs = find_jobset(tx, jobset)?.settings.inputs;
        if let Some(only) = only {
            inputs.retain(|name, _| name == only);
            if inputs.is_empty() {
                return missing(&InputName {
                    jobset: jobset.clone(),
                    input: only.clone(),
                });
            }
        }
        Ok(inputs)
    })?;
    if read.json {
        let list: Vec<serde_json::Value> = inputs
            .iter()
            .map(|(name, input)| {
                let mut object = input.as_json();
                object["name"] = json!(name);
                object
            })
            .collect();
        match (only, list.as_slice()) {
            (Some(_), [one]) => println!("{one}"),
            _ => println!("{}", json!({ "inputs": list })),
        }
        return Ok(ExitCode::SUCCESS);
    }
    if inputs.is_empty() {
        println!("{jobset} has no inputs; `hydrad input create` adds one");
        return Ok(ExitCode::SUCCESS);
    }
    let headings = ["input", "type", "committers told", "value"];
    let mut rows = vec![headings.map(str::to_owned).to_vec()];
    for (name, input) in inputs {
        let told = if input.email_responsible { "yes" } else { "no" };
        rows.push(vec![
            name,
            input.kind,
            told.to_owned(),
            input.value.unwrap_or_default(),
        ]);
    }
    print!("{}", table::table(&rows));
    Ok(ExitCode::SUCCESS)
}
