//! `hydrad apply`: makes projects, jobsets and inputs what a file says.
//!
//! The file is carried out in one transaction. Before, the same transaction is tried without its commit, and what it would
//! change is shown; what is committed is that, or nothing.

use std::collections::{BTreeMap, BTreeSet};
use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{bail, ensure, Context as _, Result};
use postgres::Transaction;
use serde_json::Value;

use super::change::{
    change_jobset, change_project, conclusion, confirm, connect, find_project, is_change, refuse,
    report, transact, Change, Expect, JobsetName, Kind, Trouble, WriteArgs,
};
use crate::config::declarative::{JobsetSpec, JOBSETS, SPECIFICATION_BYTES_MAX};
use crate::config::fields::FieldChange;
use crate::config::project::{projects_from_json, ProjectSpec};
use crate::db::jobsets;

/// Make projects, jobsets and inputs what a file says
///
/// The file is JSON or TOML, to be kept beside the code. The keys of a jobset are those of Hydra's declarative projects, so a
/// specification of theirs can stand below `jobsets`. What the file does not say stays as it is, but for inputs: a jobset has
/// those that are named. Shows first what would be created and changed, field by field, and asks; all is written in one
/// transaction, or nothing. Applying the same file again changes nothing.
#[derive(clap::Args, Debug)]
#[command(after_help = "A file:
  [projects.website]
  displayname = \"Our website\"
  owner = \"alice\"

  [projects.website.jobsets.main]
  nixexprinput = \"src\"
  nixexprpath = \"release.nix\"
  checkinterval = 600
  inputs.src = { type = \"git\", value = \"https://example.org/website.git main\" }
  inputs.nixpkgs = { type = \"git\", value = \"https://github.com/NixOS/nixpkgs nixos-unstable-small\" }

  [projects.website.jobsets.next]
  type = 1
  flake = \"git+https://example.org/website.git?ref=next\"

Exit code: 0 if all is as the file says now; with --dry-run --exit-code 1 if something would change; 2 if it could not be done.

Examples:
  hydrad apply farm.toml                       shows, asks, does it
  hydrad apply farm.toml --yes --prune         from a script
  hydrad apply farm.toml --dry-run --exit-code
  hydrad project show website --file           what there is as such a file")]
pub struct ApplyArgs {
    #[command(flatten)]
    pub write: WriteArgs,
    /// Do not ask
    #[arg(long)]
    pub yes: bool,
    /// Disable and hide jobsets of the file's projects that it does not name, as Hydra's declarative projects do
    #[arg(long)]
    pub prune: bool,
    /// With --dry-run: exit code 1 if something would change
    #[arg(long, requires = "dry_run")]
    pub exit_code: bool,
    /// JSON or TOML (by its name, or by what it looks like); `-` is standard input
    #[arg(value_name = "FILE")]
    pub file: PathBuf,
}

/// # Errors
/// When the file is wrong, or it cannot be carried out.
pub fn run(args: &ApplyArgs) -> Result<ExitCode> {
    let place = args.file.display().to_string();
    let value = read(&args.file)?;
    let projects = projects_from_json(&value).context(place)?;
    let (settings, mut client) = connect(&args.write.state)?;
    let dynamic = settings.dynamic_run_command;
    let changes = transact(&mut client, false, |tx| {
        carry_out(tx, &projects, args.prune, dynamic)
    })?;
    let nothing = !is_change(&changes);
    if nothing || args.write.dry_run {
        report(&args.write, &changes);
        return Ok(match args.exit_code && !nothing {
            true => ExitCode::FAILURE,
            false => ExitCode::SUCCESS,
        });
    }
    for change in &changes {
        match args.write.json {
            true => eprint!("{change}"),
            false => print!("{change}"),
        }
    }
    confirm(args.yes, "Do this?")?;
    transact(&mut client, true, |tx| {
        let again = carry_out(tx, &projects, args.prune, dynamic)?;
        match again == changes {
            true => Ok(()),
            false => refuse(
                "somebody else has changed something meanwhile, so this would do something else than what was shown; \
                 nothing was changed, look again"
                    .to_owned(),
            ),
        }
    })?;
    match args.write.json {
        true => report(&args.write, &changes),
        false => println!("{}", conclusion(false, &changes)),
    }
    Ok(ExitCode::SUCCESS)
}

/// A file as the JSON it is or stands for.
fn read(file: &Path) -> Result<Value> {
    let place = || format!("cannot read {}", file.display());
    let mut text = String::new();
    let source: Box<dyn std::io::Read> = match file.to_str() {
        Some("-") => Box::new(std::io::stdin()),
        _ => Box::new(std::fs::File::open(file).with_context(place)?),
    };
    source
        .take(SPECIFICATION_BYTES_MAX + 1)
        .read_to_string(&mut text)
        .with_context(place)?;
    ensure!(
        text.len() as u64 <= SPECIFICATION_BYTES_MAX,
        "{}: more than {SPECIFICATION_BYTES_MAX} bytes; is this the right file?",
        file.display()
    );
    let is_json = match file.extension().and_then(|end| end.to_str()) {
        Some("json") => true,
        Some("toml") => false,
        _ => text.trim_start().starts_with('{'),
    };
    match is_json {
        true => {
            serde_json::from_str(&text).with_context(|| format!("{} is not JSON", file.display()))
        }
        false => match text.parse::<toml::Table>() {
            Ok(table) => from_toml(toml::Value::Table(table)),
            Err(error) => bail!("{} is not TOML: {error}", file.display()),
        },
    }
}

fn from_toml(value: toml::Value) -> Result<Value> {
    Ok(match value {
        toml::Value::String(text) => Value::from(text),
        toml::Value::Integer(number) => Value::from(number),
        toml::Value::Float(number) => Value::from(number),
        toml::Value::Boolean(flag) => Value::from(flag),
        toml::Value::Datetime(moment) => Value::from(moment.to_string()),
        toml::Value::Array(list) => list
            .into_iter()
            .map(from_toml)
            .collect::<Result<Vec<Value>>>()?
            .into(),
        toml::Value::Table(table) => Value::Object(
            table
                .into_iter()
                .map(|(key, value)| Ok((key, from_toml(value)?)))
                .collect::<Result<_>>()?,
        ),
    })
}

/// Makes everything what the file says.
fn carry_out(
    tx: &mut Transaction<'_>,
    projects: &BTreeMap<String, ProjectSpec>,
    prune: bool,
    dynamic: bool,
) -> Result<Vec<Change>, Trouble> {
    let names: Vec<&str> = projects.keys().map(String::as_str).collect();
    jobsets::lock_projects(tx, &names)?;
    let mut changes = Vec::new();
    for (name, spec) in projects {
        carry_out_project(tx, name, spec, prune, dynamic, &mut changes).map_err(|trouble| {
            match trouble {
                Trouble::Other(error) => Trouble::Other(error.context(format!("projects.{name}"))),
                db => db,
            }
        })?;
    }
    Ok(changes)
}

fn carry_out_project(
    tx: &mut Transaction<'_>,
    name: &str,
    spec: &ProjectSpec,
    prune: bool,
    dynamic: bool,
    changes: &mut Vec<Change>,
) -> Result<(), Trouble> {
    changes.push(change_project(tx, name, spec, Expect::Either, dynamic)?);
    let Some(wanted) = &spec.jobsets else {
        return Ok(());
    };
    let project = find_project(tx, name)?;
    if project.settings.declarative.is_some() {
        return refuse(
            "its jobsets come from the specification in its repository; say `declarative = false` if the file is to name them \
             from now on"
                .to_owned(),
        );
    }
    jobsets::lock_jobsets(tx, name, None)?;
    for (jobset, spec) in wanted {
        let jobset = JobsetName {
            project: name.to_owned(),
            jobset: jobset.clone(),
        };
        let say = |_: Option<&JobsetSpec>| Ok(spec.clone());
        changes.push(change_jobset(tx, &jobset, &say, Expect::Either, dynamic)?);
    }
    let named: BTreeSet<&str> = wanted.keys().map(String::as_str).collect();
    let others = jobsets::jobsets(tx, Some(name), None)?;
    let mut gone = Vec::new();
    for other in others {
        if named.contains(other.name.as_str()) || other.name == JOBSETS {
            continue;
        }
        let (enabled, hidden) = (other.settings.enabled, other.settings.hidden);
        let is_gone = enabled == Some(0) && hidden == Some(1);
        let hide = prune && !is_gone;
        let field = |field: &str, before: Option<i32>, after: i32| FieldChange {
            field: field.to_owned(),
            before: before.map(Value::from),
            after: Some(after.into()),
        };
        let fields = match hide {
            true => vec![field("enabled", enabled, 0), field("hidden", hidden, 1)],
            false => Vec::new(),
        };
        let note = match (hide, is_gone) {
            (true, _) => "not in the file",
            (false, true) => "not in the file, disabled and hidden",
            (false, false) => "not in the file; --prune disables and hides it",
        };
        changes.push(Change {
            kind: if hide { Kind::Hide } else { Kind::Leave },
            what: "jobset",
            name: other.full_name(),
            fields: fields
                .into_iter()
                .filter(|field| field.before != field.after)
                .collect(),
            notes: vec![note.to_owned()],
        });
        if hide {
            gone.push(other.name);
        }
    }
    if !gone.is_empty() {
        jobsets::hide_jobsets(tx, name, &gone)?;
    }
    Ok(())
}
