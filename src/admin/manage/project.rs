//! `hydrad project`.

use std::process::ExitCode;

use anyhow::Result;
use serde_json::{json, Map, Value};

use super::change::{
    change_project, confirm, connect, find_project, refuse, report, transact, Change, Expect, Kind,
    ReadArgs, Trouble, WriteArgs,
};
use super::jobset::{jobset_json, jobset_rows};
use crate::admin::connect::environment;
use crate::admin::table;
use crate::config::fields::{words, FieldChange};
use crate::config::project::{check_project_name, Declarative, ProjectSpec};
use crate::db::jobsets::{self, Losses, StoredJobset, StoredProject};

/// Create, change, delete and show projects
///
/// The same rows that Hydra's web server writes, under the same rules.
#[derive(clap::Args, Debug)]
pub struct ProjectArgs {
    #[command(subcommand)]
    pub action: ProjectAction,
}

#[derive(clap::Subcommand, Debug)]
pub enum ProjectAction {
    Create(CreateArgs),
    Edit(EditArgs),
    Delete(DeleteArgs),
    List(ListArgs),
    Show(ShowArgs),
}

/// Create a project
///
/// It belongs to a user of Hydra's (`hydrad create-user`): --owner, or the user of the same name as the one who runs this.
#[derive(clap::Args, Debug)]
#[command(after_help = "Examples:
  hydrad project create website --owner alice --displayname 'Our website'
  hydrad project create tools --owner alice \\
      --declarative-file spec.json --declarative-type git --declarative-value 'https://example.org/tools.git main'")]
pub struct CreateArgs {
    #[command(flatten)]
    pub write: WriteArgs,
    #[command(flatten)]
    pub settings: SettingsArgs,
    /// Letters, digits, `-` and `_`
    #[arg(value_name = "PROJECT")]
    pub name: String,
}

/// Change a project
///
/// What is not named stays as it is.
#[derive(clap::Args, Debug)]
#[command(after_help = "Examples:
  hydrad project edit website --enabled false        nothing of it is evaluated any more
  hydrad project edit website --rename site --dry-run
  hydrad project edit tools --no-declarative")]
pub struct EditArgs {
    #[command(flatten)]
    pub write: WriteArgs,
    #[command(flatten)]
    pub settings: SettingsArgs,
    /// Another name; jobsets and builds go with it
    #[arg(long, value_name = "NAME")]
    pub rename: Option<String>,
    #[arg(value_name = "PROJECT")]
    pub name: String,
}

#[derive(clap::Args, Debug)]
pub struct SettingsArgs {
    /// The name people see
    #[arg(long, value_name = "TEXT")]
    pub displayname: Option<String>,
    #[arg(long, value_name = "TEXT")]
    pub description: Option<String>,
    #[arg(long, value_name = "URL")]
    pub homepage: Option<String>,
    /// The user it belongs to, who gets mail about errors of evaluations
    #[arg(long, value_name = "USER")]
    pub owner: Option<String>,
    /// Whether its jobsets are evaluated
    #[arg(long, value_name = "BOOL")]
    pub enabled: Option<bool>,
    /// Whether web pages leave it out
    #[arg(long, value_name = "BOOL")]
    pub hidden: Option<bool>,
    /// Whether its jobsets may have dynamic RunCommand; the server must allow it too
    #[arg(long, value_name = "BOOL")]
    pub enable_dynamic_run_command: Option<bool>,
    /// The file that says which jobsets there are, in the input that the next two describe
    #[arg(long, value_name = "PATH", requires_all = ["declarative_type", "declarative_value"])]
    pub declarative_file: Option<String>,
    /// Type of the input with the specification
    #[arg(long, value_name = "TYPE", requires = "declarative_file")]
    pub declarative_type: Option<String>,
    /// Value of the input with the specification
    #[arg(long, value_name = "VALUE", requires = "declarative_file")]
    pub declarative_value: Option<String>,
    /// Jobsets are made by hand from now on; `.jobsets` is deleted, with its builds
    #[arg(long, conflicts_with = "declarative_file")]
    pub no_declarative: bool,
}

impl SettingsArgs {
    fn spec(&self) -> Result<ProjectSpec> {
        let declared = match (
            &self.declarative_file,
            &self.declarative_type,
            &self.declarative_value,
        ) {
            (Some(file), Some(kind), Some(value)) => Some(Declarative {
                file: file.clone(),
                kind: kind.clone(),
                value: value.clone(),
            }),
            _ => None,
        };
        let spec = ProjectSpec {
            display_name: self.displayname.clone(),
            description: self.description.clone(),
            homepage: self.homepage.clone(),
            owner: self.owner.clone(),
            enabled: self.enabled,
            hidden: self.hidden,
            enable_dynamic_run_command: self.enable_dynamic_run_command,
            declarative: match declared {
                Some(declared) => Some(Some(declared)),
                None => self.no_declarative.then_some(None),
            },
            jobsets: None,
        };
        Ok(spec.tidy()?)
    }
}

/// Delete a project with all its jobsets, evaluations and builds
///
/// Shows what goes, and asks. Running steps are stopped. Outputs in the store and logs stay until they are collected.
#[derive(clap::Args, Debug)]
#[command(
    after_help = "To only stop it: hydrad project edit PROJECT --enabled false --hidden true"
)]
pub struct DeleteArgs {
    #[command(flatten)]
    pub write: WriteArgs,
    /// Do not ask
    #[arg(long)]
    pub yes: bool,
    #[arg(value_name = "PROJECT")]
    pub name: String,
}

/// List projects
#[derive(clap::Args, Debug)]
pub struct ListArgs {
    #[command(flatten)]
    pub read: ReadArgs,
    /// Hidden ones too
    #[arg(long, short)]
    pub all: bool,
}

/// Show a project and its jobsets
#[derive(clap::Args, Debug)]
#[command(after_help = "Examples:
  hydrad project show website
  hydrad project show website --file > website.json     then edit it, and `hydrad apply website.json`")]
pub struct ShowArgs {
    #[command(flatten)]
    pub read: ReadArgs,
    /// Print it as a file for `hydrad apply`, with all its jobsets
    #[arg(long, conflicts_with = "json")]
    pub file: bool,
    #[arg(value_name = "PROJECT")]
    pub name: String,
}

/// # Errors
/// When it cannot be done.
pub fn run(args: &ProjectArgs) -> Result<ExitCode> {
    match &args.action {
        ProjectAction::Create(args) => create(args),
        ProjectAction::Edit(args) => edit(args),
        ProjectAction::Delete(args) => delete(args),
        ProjectAction::List(args) => list(args),
        ProjectAction::Show(args) => show(args),
    }
}

fn create(args: &CreateArgs) -> Result<ExitCode> {
    let mut spec = args.settings.spec()?;
    let (settings, mut client) = connect(&args.write.state)?;
    let dynamic = settings.dynamic_run_command;
    if spec.owner.is_none() {
        spec.owner = environment("SUDO_USER").or_else(|| environment("USER"));
        let is_user = match &spec.owner {
            Some(name) => jobsets::is_user(&mut client, name)?,
            None => false,
        };
        if !is_user {
            let known = jobsets::user_names(&mut client)?.join(", ");
            anyhow::bail!("whom does it belong to? Name a user with --owner (there are: {known}), or make one with `hydrad create-user`");
        }
    }
    let change = transact(&mut client, !args.write.dry_run, |tx| {
        change_project(tx, &args.name, &spec, Expect::New, dynamic)
    })?;
    report(&args.write, &[change]);
    Ok(ExitCode::SUCCESS)
}

fn edit(args: &EditArgs) -> Result<ExitCode> {
    let spec = args.settings.spec()?;
    let (settings, mut client) = connect(&args.write.state)?;
    let dynamic = settings.dynamic_run_command;
    let change = transact(&mut client, !args.write.dry_run, |tx| {
        let mut change = change_project(tx, &args.name, &spec, Expect::There, dynamic)?;
        if let Some(to) = args.rename.as_ref().filter(|to| **to != args.name) {
            check_project_name(to)?;
            if !jobsets::projects(tx, Some(&[to.as_str()]))?.is_empty() {
                return refuse(format!("there is a project `{to}` already"));
            }
            jobsets::rename_project(tx, &args.name, to)?;
            note_rename(&mut change, &args.name, to);
        }
        Ok(change)
    })?;
    report(&args.write, &[change]);
    Ok(ExitCode::SUCCESS)
}

/// Another name is a change as well.
pub fn note_rename(change: &mut Change, from: &str, to: &str) {
    change.kind = Kind::Change;
    change.fields.push(FieldChange {
        field: "name".to_owned(),
        before: Some(from.into()),
        after: Some(to.into()),
    });
}

fn delete(args: &DeleteArgs) -> Result<ExitCode> {
    let (_, mut client) = connect(&args.write.state)?;
    let gone = |tx: &mut postgres::Transaction<'_>| {
        jobsets::lock_projects(tx, &[&args.name])?;
        find_project(tx, &args.name)?;
        jobsets::lock_jobsets(tx, &args.name, None)?;
        let stored = jobsets::jobsets(tx, Some(&args.name), None)?;
        doomed(tx, "project", &args.name, &stored)
    };
    let (_, change) = transact(&mut client, false, gone)?;
    if !args.write.dry_run {
        if !args.yes {
            eprint!("{change}");
        }
        confirm(args.yes, "Delete it?")?;
        transact(&mut client, true, |tx| {
            let (ids, _) = gone(tx)?;
            Ok(jobsets::delete_project(tx, &args.name, &ids)?)
        })?;
    }
    report(&args.write, &[change]);
    Ok(ExitCode::SUCCESS)
}

/// What goes when these jobsets are deleted.
///
/// # Errors
/// When the tables do not let their builds go.
pub fn doomed(
    tx: &mut postgres::Transaction<'_>,
    what: &'static str,
    name: &str,
    stored: &[StoredJobset],
) -> Result<(Vec<i32>, Change), Trouble> {
    let ids: Vec<i32> = stored.iter().map(|jobset| jobset.id).collect();
    let dependents = jobsets::dependents(tx, &ids)?;
    if !dependents.is_empty() {
        let named: Vec<String> = dependents
            .iter()
            .map(|(jobset, evaluation)| format!("{evaluation} of {jobset}"))
            .collect();
        return refuse(format!(
            "builds of {what} {name} were inputs of other jobsets' evaluations, which Hydra's tables keep: {}; delete those \
             jobsets first, or disable and hide it instead",
            named.join(", ")
        ));
    }
    let Losses {
        evaluations,
        builds,
        queued,
        kept,
        running,
    } = jobsets::losses(tx, &ids)?;
    let mut notes = vec![format!(
        "with {evaluations} evaluations and {builds} builds, {queued} of them queued"
    )];
    if what == "project" {
        let names: Vec<&str> = stored.iter().map(|jobset| jobset.name.as_str()).collect();
        notes.insert(
            0,
            format!("with {} jobsets: {}", names.len(), names.join(", ")),
        );
    }
    if kept > 0 {
        notes.push(format!("{kept} builds are marked to be kept for ever"));
    }
    if running > 0 {
        notes.push(format!("{running} steps are running for it"));
    }
    if let Some(jobset) = stored.iter().find(|jobset| jobset.started.is_some()) {
        notes.push(format!("{} is being evaluated", jobset.full_name()));
    }
    let change = Change {
        kind: Kind::Delete,
        what,
        name: name.to_owned(),
        fields: Vec::new(),
        notes,
    };
    Ok((ids, change))
}

fn list(args: &ListArgs) -> Result<ExitCode> {
    let (_, mut client) = connect(&args.read.state)?;
    let mut projects = jobsets::projects(&mut client, None)?;
    projects.retain(|project| args.all || !project.settings.hidden);
    let jobsets = jobsets::jobsets(&mut client, None, None)?;
    let of = |project: &StoredProject| {
        let own = jobsets.iter();
        own.filter(|jobset| jobset.project == project.name).count()
    };
    if args.read.json {
        let list: Vec<Value> = projects
            .iter()
            .map(|project| {
                let mut object = project_json(project);
                object["jobsets"] = json!(of(project));
                object
            })
            .collect();
        println!("{}", json!({ "projects": list }));
        return Ok(ExitCode::SUCCESS);
    }
    let headings = ["project", "name", "owner", "state", "jobsets"];
    let mut rows = vec![headings.map(str::to_owned).to_vec()];
    for project in &projects {
        let settings = &project.settings;
        let declarative = match settings.declarative {
            Some(_) => " (declarative)",
            None => "",
        };
        rows.push(vec![
            project.name.clone(),
            settings.display_name.clone(),
            settings.owner.clone(),
            state_words(settings.enabled, settings.hidden),
            format!("{}{declarative}", of(project)),
        ]);
    }
    match projects.is_empty() {
        true => println!("no projects; `hydrad project create` makes one, --all shows hidden ones"),
        false => print!("{}", table::table(&rows)),
    }
    Ok(ExitCode::SUCCESS)
}

fn state_words(enabled: bool, hidden: bool) -> String {
    let enabled = if enabled { "enabled" } else { "disabled" };
    let hidden = if hidden { ", hidden" } else { "" };
    format!("{enabled}{hidden}")
}

/// A project's settings under the keys of a file for `hydrad apply`, with its name.
fn project_json(project: &StoredProject) -> Value {
    let mut object = project_spec(project);
    object.insert("name".to_owned(), json!(project.name));
    Value::Object(object)
}

fn project_spec(project: &StoredProject) -> Map<String, Value> {
    let fields = project.settings.fields();
    let mut object: Map<String, Value> = fields
        .into_iter()
        .filter(|(key, _)| !key.starts_with("declarative."))
        .collect();
    if let Some(declared) = &project.settings.declarative {
        object.insert(
            "declarative".to_owned(),
            json!({"file": declared.file, "type": declared.kind, "value": declared.value}),
        );
    }
    object
}

fn show(args: &ShowArgs) -> Result<ExitCode> {
    let (_, mut client) = connect(&args.read.state)?;
    let read = |tx: &mut postgres::Transaction<'_>| {
        let project = find_project(tx, &args.name)?;
        let stored = jobsets::jobsets(tx, Some(&args.name), None)?;
        let standings = jobsets::standings(tx, Some(&args.name))?;
        Ok((project, stored, standings))
    };
    let (project, stored, standings) = transact(&mut client, false, read)?;
    if args.file {
        let mut spec = project_spec(&project);
        if project.settings.declarative.is_none() {
            let jobsets: Map<String, Value> = stored
                .iter()
                .map(|jobset| (jobset.name.clone(), jobset.settings.as_json()))
                .collect();
            spec.insert("jobsets".to_owned(), Value::Object(jobsets));
        }
        let file = json!({"projects": {project.name.clone(): spec}});
        println!("{file:#}");
        return Ok(ExitCode::SUCCESS);
    }
    let standing = |jobset: &StoredJobset| standings.get(&jobset.id).copied().unwrap_or_default();
    if args.read.json {
        let mut object = project_json(&project);
        let list = stored.iter();
        let list: Vec<Value> = list
            .map(|jobset| jobset_json(jobset, standing(jobset)))
            .collect();
        object["jobsets"] = json!(list);
        println!("{object}");
        return Ok(ExitCode::SUCCESS);
    }
    println!("project {}\n", project.name);
    let rows: Vec<Vec<String>> = project
        .settings
        .fields()
        .iter()
        .map(|(key, value)| vec![key.clone(), words(Some(value))])
        .collect();
    println!("{}", table::table(&rows));
    match stored.is_empty() {
        true => println!(
            "no jobsets; `hydrad jobset create {}:NAME` makes one",
            project.name
        ),
        false => print!("{}", table::table(&jobset_rows(&stored, standing))),
    }
    Ok(ExitCode::SUCCESS)
}
