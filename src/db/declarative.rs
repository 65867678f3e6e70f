//! A declarative specification carried out: the rows of a project's jobsets and of their inputs.
//!
//! Each jobset is changed for itself: what is wrong with one is reported, and the others are as they should be. What is already
//! as it should be is not written.

use std::collections::BTreeMap;

use postgres::{Client, Transaction};

use super::jobsets::{self, in_transaction, Trigger};
use super::DbError;
use crate::config::declarative::{JobsetSpec, JOBSETS};

const SELECT_PROJECT: &str = include_str!("../../sql/declarative/select_project.sql");

/// Whether rows are changed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Mode {
    Apply,
    /// Everything but the commit: what would be changed.
    Rehearse,
}

/// What was changed.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Applied {
    /// New jobsets, with what they are.
    pub created: BTreeMap<String, Vec<String>>,
    /// Changed ones, with what differs, as `keepnr: 3 -> 5`.
    pub changed: BTreeMap<String, Vec<String>>,
    /// Those that are not named any more: disabled and hidden.
    pub disabled: Vec<String>,
    pub unchanged: Vec<String>,
    /// What could not be carried out, by jobset.
    pub errors: BTreeMap<String, String>,
}

impl Applied {
    /// The errors as one text; empty if there are none.
    pub fn error_text(&self) -> String {
        let lines = self.errors.iter().map(|(jobset, error)| {
            format!("failed to process declarative jobset ‘{jobset}’: {error}\n")
        });
        lines.collect()
    }
}

/// Makes a project's jobsets what the specification says; those it does not name are disabled and hidden. `None`: there is no
/// such project.
///
/// `dynamic_commands`: whether the server lets jobsets have dynamic RunCommands; the project must too.
///
/// # Errors
/// Of the database; nothing is changed then.
pub fn apply(
    client: &mut Client,
    project: &str,
    jobsets: &BTreeMap<String, Result<JobsetSpec, String>>,
    dynamic_commands: bool,
    mode: Mode,
) -> Result<Option<Applied>, DbError> {
    repeatedly(client, mode, |tx| {
        let Some(dynamic) = dynamic_allowed(tx, project, dynamic_commands)? else {
            return Ok(None);
        };
        let before = current(tx, project)?;
        let mut applied = Applied::default();
        for (name, spec) in jobsets {
            let result = match spec {
                Ok(spec) => change(tx, project, name, spec, before.get(name), dynamic)?,
                Err(error) => Err(error.clone()),
            };
            note(&mut applied, name, before.contains_key(name), result);
        }
        let gone = before.iter().filter(|(name, is)| {
            let shown = is.enabled != Some(0) || is.hidden != Some(1);
            *name != JOBSETS && !jobsets.contains_key(*name) && shown
        });
        applied.disabled = gone.map(|(name, _)| name.clone()).collect();
        if !applied.disabled.is_empty() {
            jobsets::hide_jobsets(tx, project, &applied.disabled)?;
        }
        Ok(Some(applied))
    })
}

/// Makes one jobset what is said of it; made if it is not there. Gives what differs, or what is wrong with it.
///
/// # Errors
/// Of the database; nothing is changed then.
pub fn apply_one(
    client: &mut Client,
    project: &str,
    jobset: &str,
    spec: &JobsetSpec,
    dynamic_commands: bool,
    mode: Mode,
) -> Result<Result<Vec<String>, String>, DbError> {
    repeatedly(client, mode, |tx| {
        let Some(dynamic) = dynamic_allowed(tx, project, dynamic_commands)? else {
            return Ok(Err(format!("there is no project `{project}`")));
        };
        let before = current(tx, project)?;
        change(tx, project, jobset, spec, before.get(jobset), dynamic)
    })
}

/// The jobsets of a project as they are. Every field that a row has is set.
///
/// # Errors
/// Of the database.
pub fn read(client: &mut Client, project: &str) -> Result<BTreeMap<String, JobsetSpec>, DbError> {
    let mut tx = client.transaction()?;
    let jobsets = current(&mut tx, project)?;
    tx.rollback()?;
    Ok(jobsets)
}

fn repeatedly<T>(
    client: &mut Client,
    mode: Mode,
    mut work: impl FnMut(&mut Transaction<'_>) -> Result<T, DbError>,
) -> Result<T, DbError> {
    in_transaction(client, |tx| Ok((work(tx)?, mode == Mode::Apply)))
}

/// Whether jobsets of this project may have dynamic RunCommands; `None` if there is no such project.
fn dynamic_allowed(
    tx: &mut Transaction<'_>,
    project: &str,
    server: bool,
) -> Result<Option<bool>, DbError> {
    let row = tx.query_opt(SELECT_PROJECT, &[&project])?;
    Ok(row.map(|row| server && row.get::<_, bool>(0)))
}

fn current(
    tx: &mut Transaction<'_>,
    project: &str,
) -> Result<BTreeMap<String, JobsetSpec>, DbError> {
    jobsets::lock_jobsets(tx, project, None)?;
    let stored = jobsets::jobsets(tx, Some(project), None)?;
    let named = stored
        .into_iter()
        .map(|jobset| (jobset.name, jobset.settings));
    Ok(named.collect())
}

fn note(applied: &mut Applied, name: &str, was_there: bool, result: Result<Vec<String>, String>) {
    let name = name.to_owned();
    match result {
        Err(error) => drop(applied.errors.insert(name, error)),
        Ok(what) if !was_there => drop(applied.created.insert(name, what)),
        Ok(what) if what.is_empty() => applied.unchanged.push(name),
        Ok(what) => drop(applied.changed.insert(name, what)),
    }
}

/// The inner result is about the jobset: what differs, or what is wrong.
fn change(
    tx: &mut Transaction<'_>,
    project: &str,
    name: &str,
    spec: &JobsetSpec,
    before: Option<&JobsetSpec>,
    dynamic: bool,
) -> Result<Result<Vec<String>, String>, DbError> {
    if spec.enable_dynamic_run_command == Some(true) && !dynamic {
        return Ok(Err(
            "Dynamic RunCommand is not enabled by the server or the parent project.".to_owned(),
        ));
    }
    let after = match spec.over(before.unwrap_or(&JobsetSpec::defaults())) {
        Ok(after) => after,
        Err(error) => return Ok(Err(error)),
    };
    let differences = before.unwrap_or(&JobsetSpec::default()).differences(&after);
    if differences.is_empty() {
        return Ok(Ok(differences));
    }
    // What PostgreSQL does not take of this one must not undo the others.
    let mut part = tx.transaction()?;
    match jobsets::write_jobset(
        &mut part,
        project,
        name,
        before,
        &after,
        Trigger::ByInterval,
    ) {
        Ok(()) => part.commit()?,
        Err(DbError::Statement(error))
            if error.code().is_some()
                && !super::error::is_retryable(&error)
                && !super::error::is_lost(&error) =>
        {
            part.rollback()?;
            return Ok(Err(super::error::words(&error)));
        }
        Err(error) => return Err(error),
    }
    Ok(Ok(differences))
}
