//! Changes of projects and jobsets: made in a transaction of the caller, told for people and scripts, confirmed.
//!
//! A dry run is the same transaction without its commit, so it says exactly what would be written.

use std::fmt;

use anyhow::{anyhow, Context as _, Result};
use postgres::{Client, Transaction};
use serde_json::{json, Value};

use crate::admin::connect::StateArgs;
use crate::admin::{ask, table};
use crate::config::declarative::{JobsetSpec, JOBSETS};
use crate::config::fields::{changed, words, FieldChange, Fields};
use crate::config::project::{
    check_jobset_name, check_project_name, Project, ProjectSpec, SpecError,
};
use crate::config::settings::Settings;
use crate::db::jobsets::{self, in_transaction, StoredJobset, StoredProject, Trigger};
use crate::db::schema;
use crate::db::DbError;
use crate::sys::clock::unix_now;

pub const APPLICATION_NAME: &str = "hydrad-manage";

/// What every command that writes takes.
#[derive(clap::Args, Clone, Debug)]
pub struct WriteArgs {
    #[command(flatten)]
    pub state: StateArgs,
    /// Write nothing, only say what would be written
    #[arg(long)]
    pub dry_run: bool,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

/// What every command that only reads takes.
#[derive(clap::Args, Clone, Debug)]
pub struct ReadArgs {
    #[command(flatten)]
    pub state: StateArgs,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

/// The settings and a connection to a database whose tables are served.
///
/// # Errors
/// When the settings are wrong or the database cannot be had.
pub fn connect(state: &StateArgs) -> Result<(Settings, Client)> {
    let settings = state.settings()?;
    let mut client = state.target(&settings)?.connect(APPLICATION_NAME)?;
    for warning in schema::check_schema(&mut client)?.serve_reader()? {
        log::warn!("{warning}");
    }
    Ok((settings, client))
}

/// Unix time as it is in rows.
pub fn now() -> i32 {
    i32::try_from(unix_now()).unwrap_or(i32::MAX)
}

// ---- transactions

/// Why a change was not made.
pub enum Trouble {
    /// Perhaps worth another try.
    Db(DbError),
    Other(anyhow::Error),
}

impl From<DbError> for Trouble {
    fn from(error: DbError) -> Trouble {
        Trouble::Db(error)
    }
}

impl From<anyhow::Error> for Trouble {
    fn from(error: anyhow::Error) -> Trouble {
        Trouble::Other(error)
    }
}

impl From<SpecError> for Trouble {
    fn from(error: SpecError) -> Trouble {
        Trouble::Other(error.into())
    }
}

/// A reason to change nothing, as a result.
pub fn refuse<T>(reason: String) -> Result<T, Trouble> {
    Err(Trouble::Other(anyhow!(reason)))
}

/// Makes changes in one transaction, or only tries them.
///
/// # Errors
/// Of `work`; nothing is changed then.
pub fn transact<T>(
    client: &mut Client,
    commit: bool,
    mut work: impl FnMut(&mut Transaction<'_>) -> Result<T, Trouble>,
) -> Result<T> {
    let done = in_transaction(client, |tx| match work(tx) {
        Ok(value) => Ok((Ok(value), commit)),
        Err(Trouble::Db(error)) => Err(error),
        Err(Trouble::Other(error)) => Ok((Err(error), false)),
    });
    match done {
        Ok(result) => result,
        Err(error) if error.is_lock_timeout() => Err(error).context(
            "somebody else holds a row that is to be changed, perhaps an evaluation that is being written; nothing was \
             changed, try again in a while",
        ),
        Err(error) => Err(error.into()),
    }
}

// ---- changes

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Kind {
    Create,
    Change,
    /// Disabled and hidden, since a file no longer names it.
    Hide,
    Delete,
    Leave,
}

impl Kind {
    fn word(self) -> &'static str {
        match self {
            Kind::Create => "create",
            Kind::Change => "change",
            Kind::Hide => "hide",
            Kind::Delete => "delete",
            Kind::Leave => "leave",
        }
    }

    fn colour(self) -> &'static str {
        match self {
            Kind::Create => "\u{1b}[32m",
            Kind::Change => "\u{1b}[33m",
            Kind::Hide | Kind::Delete => "\u{1b}[31m",
            Kind::Leave => "",
        }
    }
}

/// What becomes of a project or jobset.
#[derive(Clone, PartialEq, Debug)]
pub struct Change {
    pub kind: Kind,
    /// `project` or `jobset`.
    pub what: &'static str,
    pub name: String,
    pub fields: Vec<FieldChange>,
    /// What follows from it.
    pub notes: Vec<String>,
}

impl Change {
    /// What makes of something, or of nothing, something else.
    fn between(what: &'static str, name: String, before: Option<Fields>, after: &Fields) -> Change {
        let is_new = before.is_none();
        let fields = changed(&before.unwrap_or_default(), after);
        Change {
            kind: match (is_new, fields.is_empty()) {
                (true, _) => Kind::Create,
                (false, false) => Kind::Change,
                (false, true) => Kind::Leave,
            },
            what,
            name,
            fields,
            notes: Vec::new(),
        }
    }

    fn as_json(&self) -> Value {
        let fields: Vec<Value> = self.fields.iter().map(FieldChange::as_json).collect();
        json!({"change": self.kind.word(), "what": self.what, "name": self.name, "fields": fields, "notes": self.notes})
    }
}

/// Settings of a new thing that say nothing are not worth a line.
fn is_worth_telling(kind: Kind, field: &FieldChange) -> bool {
    let empty = matches!(
        &field.after,
        None | Some(Value::Null) | Some(Value::Bool(false))
    ) || field.after == Some(Value::from(""));
    kind != Kind::Create || !empty
}

impl fmt::Display for Change {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (on, off) = match table::colour() && self.kind != Kind::Leave {
            true => (self.kind.colour(), "\u{1b}[0m"),
            false => ("", ""),
        };
        writeln!(
            f,
            "{on}{:<6}{off}  {} {}",
            self.kind.word(),
            self.what,
            self.name
        )?;
        let told = self.fields.iter();
        let told: Vec<&FieldChange> = told
            .filter(|field| is_worth_telling(self.kind, field))
            .collect();
        let width = told.iter().map(|field| field.field.chars().count()).max();
        for field in told {
            let after = words(field.after.as_ref());
            let value = match self.kind {
                Kind::Create => after,
                _ => format!("{} -> {after}", words(field.before.as_ref())),
            };
            writeln!(
                f,
                "          {:<width$}  {value}",
                field.field,
                width = width.unwrap_or(0)
            )?;
        }
        for note in &self.notes {
            writeln!(f, "          ({note})")?;
        }
        Ok(())
    }
}

/// Whether something is written at all.
pub fn is_change(changes: &[Change]) -> bool {
    changes.iter().any(|change| change.kind != Kind::Leave)
}

/// Tells what was done, or would be.
pub fn report(args: &WriteArgs, changes: &[Change]) {
    if args.json {
        let list: Vec<Value> = changes.iter().map(Change::as_json).collect();
        println!(
            "{}",
            json!({"dryRun": args.dry_run, "changed": is_change(changes), "changes": list})
        );
        return;
    }
    for change in changes {
        print!("{change}");
    }
    println!("{}", conclusion(args.dry_run, changes));
}

/// The last line of a report.
pub fn conclusion(dry_run: bool, changes: &[Change]) -> &'static str {
    match (is_change(changes), dry_run) {
        (false, _) => "nothing to change",
        (true, true) => "nothing was written: this is a dry run",
        (true, false) => "done",
    }
}

/// Asks on the terminal, unless `--yes` was given.
///
/// # Errors
/// When the answer is not yes, or nobody is there to be asked.
pub fn confirm(yes: bool, question: &str) -> Result<()> {
    match yes {
        true => Ok(()),
        false => ask::confirm(question, "nothing was changed"),
    }
}

// ---- names

/// `PROJECT:JOBSET`.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct JobsetName {
    pub project: String,
    pub jobset: String,
}

impl fmt::Display for JobsetName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.project, self.jobset)
    }
}

impl std::str::FromStr for JobsetName {
    type Err = String;

    fn from_str(text: &str) -> Result<JobsetName, String> {
        match text.split_once(':') {
            Some((project, jobset))
                if !project.is_empty() && !jobset.is_empty() && !jobset.contains(':') =>
            {
                Ok(JobsetName {
                    project: project.to_owned(),
                    jobset: jobset.to_owned(),
                })
            }
            _ => Err("expected PROJECT:JOBSET".to_owned()),
        }
    }
}

/// `PROJECT:JOBSET:INPUT`.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct InputName {
    pub jobset: JobsetName,
    pub input: String,
}

impl std::str::FromStr for InputName {
    type Err = String;

    fn from_str(text: &str) -> Result<InputName, String> {
        let wrong = || "expected PROJECT:JOBSET:INPUT".to_owned();
        let (jobset, input) = text.rsplit_once(':').ok_or_else(wrong)?;
        match input {
            "" => Err(wrong()),
            _ => Ok(InputName {
                jobset: jobset.parse().map_err(|_| wrong())?,
                input: input.to_owned(),
            }),
        }
    }
}

/// What a command expects of the thing it names.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Expect {
    New,
    There,
    Either,
}

/// # Errors
/// When there is no such project.
pub fn find_project(
    client: &mut impl postgres::GenericClient,
    name: &str,
) -> Result<StoredProject, Trouble> {
    match jobsets::projects(client, Some(&[name]))?.pop() {
        Some(project) => Ok(project),
        None => refuse(format!(
            "there is no project `{name}`; `hydrad project list` shows all, `hydrad project create {name}` makes it"
        )),
    }
}

/// # Errors
/// When there is no such jobset.
pub fn find_jobset(
    client: &mut impl postgres::GenericClient,
    name: &JobsetName,
) -> Result<StoredJobset, Trouble> {
    let mut found = jobsets::jobsets(client, Some(&name.project), Some(&name.jobset))?;
    if let Some(jobset) = found.pop() {
        return Ok(jobset);
    }
    find_project(client, &name.project)?;
    let renamed = jobsets::renamed_to(client, &name.project, &name.jobset)?;
    refuse(match renamed {
        Some(to) => format!(
            "there is no jobset `{name}` any more: it is called `{}:{to}` now",
            name.project
        ),
        None => format!(
            "there is no jobset `{name}`; `hydrad jobset list {}` shows those of the project",
            name.project
        ),
    })
}

// ---- making changes

/// Makes a project what `spec` says (without its jobsets).
///
/// # Errors
/// When it cannot be.
pub fn change_project(
    tx: &mut Transaction<'_>,
    name: &str,
    spec: &ProjectSpec,
    expect: Expect,
    dynamic_allowed: bool,
) -> Result<Change, Trouble> {
    jobsets::lock_projects(tx, &[name])?;
    let stored = jobsets::projects(tx, Some(&[name]))?.pop();
    match (expect, &stored) {
        (Expect::New, Some(_)) => {
            return refuse(format!(
                "there is a project `{name}` already; `hydrad project edit` changes it"
            ))
        }
        (Expect::There, None) => {
            find_project(tx, name)?;
        }
        (_, None) => check_project_name(name)?,
        _ => {}
    }
    let before = stored.map(|project| project.settings);
    let after = spec.over(name, before.as_ref())?;
    if before.as_ref().map(|before| &before.owner) != Some(&after.owner)
        && !jobsets::is_user(tx, &after.owner)?
    {
        let known = jobsets::user_names(tx)?;
        let known = match known.as_slice() {
            [] => "no users at all".to_owned(),
            known => format!("the users {}", known.join(", ")),
        };
        return refuse(format!(
            "there is no user `{0}`, whom the project is to belong to, but {known}; `hydrad create-user {0}` makes one",
            after.owner
        ));
    }
    let had_dynamic = before
        .as_ref()
        .is_some_and(|before| before.enable_dynamic_run_command);
    if after.enable_dynamic_run_command && !had_dynamic && !dynamic_allowed {
        return refuse(
            "Dynamic RunCommand is not enabled by the server: <dynamicruncommand> in hydra.conf says so".to_owned(),
        );
    }
    let was = before.as_ref().map(Project::fields);
    let mut change = Change::between("project", name.to_owned(), was, &after.fields());
    if change.kind == Kind::Leave {
        return Ok(change);
    }
    change.notes = project_notes(tx, name, before.as_ref(), &after)?;
    jobsets::write_project(tx, name, before.as_ref(), &after, now())?;
    Ok(change)
}

/// What changing a project entails.
fn project_notes(
    tx: &mut Transaction<'_>,
    name: &str,
    before: Option<&Project>,
    after: &Project,
) -> Result<Vec<String>, Trouble> {
    let was_declarative = before.is_some_and(|before| before.declarative.is_some());
    let mut notes = Vec::new();
    if after.declarative.is_some() {
        notes.push(format!("its jobset {JOBSETS} is to be evaluated soon"));
        if before.is_some() && !was_declarative {
            notes.push(
                "jobsets that its specification does not name will be disabled and hidden then"
                    .to_owned(),
            );
        }
    } else if was_declarative {
        let declared = jobsets::jobsets(tx, Some(name), Some(JOBSETS))?;
        let ids: Vec<i32> = declared.iter().map(|jobset| jobset.id).collect();
        let losses = jobsets::losses(tx, &ids)?;
        notes.push(format!(
            "its jobset {JOBSETS} is deleted, with {} evaluations and {} builds; the others stay as they are",
            losses.evaluations, losses.builds
        ));
    }
    Ok(notes)
}

/// What a change of a jobset begins with: the jobset as it is, or `None` for a new one. Gives what is said of it; the
/// inputs are always said.
pub type Saying<'a> = dyn Fn(Option<&JobsetSpec>) -> Result<JobsetSpec, Trouble> + 'a;

/// Makes a jobset what `say` says.
///
/// # Errors
/// When it cannot be.
pub fn change_jobset(
    tx: &mut Transaction<'_>,
    name: &JobsetName,
    say: &Saying<'_>,
    expect: Expect,
    dynamic_allowed: bool,
) -> Result<Change, Trouble> {
    jobsets::share_project(tx, &name.project)?;
    let project = find_project(tx, &name.project)?.settings;
    refuse_declarative(&name.project, project.declarative.is_some())?;
    jobsets::lock_jobsets(tx, &name.project, Some(&name.jobset))?;
    let stored = jobsets::jobsets(tx, Some(&name.project), Some(&name.jobset))?.pop();
    match (expect, &stored) {
        (Expect::New, Some(_)) => {
            return refuse(format!(
                "there is a jobset `{name}` already; `hydrad jobset edit` changes it"
            ))
        }
        (Expect::There, None) => {
            find_jobset(tx, name)?;
        }
        (_, None) => check_jobset_name(&name.jobset)?,
        _ => {}
    }
    let before = stored.map(|jobset| jobset.settings);
    let after = say(before.as_ref())?
        .over(before.as_ref().unwrap_or(&JobsetSpec::defaults()))
        .map_err(|reason| Trouble::Other(anyhow!("{name}: {reason}")))?;
    let inputs_stay = before.as_ref().is_some_and(|b| b.inputs == after.inputs);
    let mut odd = after.inputs.iter();
    // As it is read where it has several values.
    let odd = odd.find(|(_, input)| input.kind.contains(' '));
    if let Some((input, is)) = odd.filter(|_| !inputs_stay) {
        return refuse(format!(
            "the input `{input}` of {name} is of type `{}`, which no version of Hydra evaluates any more; set it anew with \
             `hydrad input edit {name}:{input} --type TYPE --value VALUE`, or delete it",
            is.kind
        ));
    }
    let had_dynamic = before.as_ref().and_then(|b| b.enable_dynamic_run_command);
    if after.enable_dynamic_run_command == Some(true)
        && had_dynamic != Some(true)
        && !(dynamic_allowed && project.enable_dynamic_run_command)
    {
        return refuse(format!(
            "{name}: Dynamic RunCommand is not enabled by the server or the parent project."
        ));
    }
    let was = before.as_ref().map(JobsetSpec::fields);
    let mut change = Change::between("jobset", name.to_string(), was, &after.fields());
    if change.kind == Kind::Leave {
        return Ok(change);
    }
    let trigger = Trigger::AsEdited { now: now() };
    jobsets::write_jobset(
        tx,
        &name.project,
        &name.jobset,
        before.as_ref(),
        &after,
        trigger,
    )?;
    change.notes.push(evaluation_note(&after, project.enabled));
    Ok(change)
}

fn evaluation_note(jobset: &JobsetSpec, project_enabled: bool) -> String {
    match (jobset.enabled, jobset.check_interval) {
        (Some(0), _) => "disabled: it is not evaluated".to_owned(),
        _ if !project_enabled => "not evaluated while its project is disabled".to_owned(),
        (_, Some(interval)) if interval > 0 => "to be evaluated soon".to_owned(),
        _ => "evaluated when it is told to: `hydrad jobset evaluate`".to_owned(),
    }
}

/// # Errors
/// When the project's jobsets are not for us to change.
pub fn refuse_declarative(project: &str, is_declarative: bool) -> Result<(), Trouble> {
    match is_declarative {
        false => Ok(()),
        true => refuse(format!(
            "the jobsets of `{project}` come from the specification in its repository: change that, or end it with \
             `hydrad project edit {project} --no-declarative`"
        )),
    }
}
