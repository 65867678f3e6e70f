//! A declarative specification carried out: the rows of a project's jobsets and of their inputs.
//!
//! Each jobset is changed for itself: what is wrong with one is reported, and the others are as they should be. What is already
//! as it should be is not written.

use std::collections::BTreeMap;

use postgres::types::ToSql;
use postgres::{Client, Row, Transaction};

use super::DbError;
use crate::config::declarative::{JobsetSpec, SpecInput, JOBSETS};

const SELECT_PROJECT: &str = include_str!("../../sql/declarative/select_project.sql");
const LOCK_JOBSETS: &str = include_str!("../../sql/declarative/lock_jobsets.sql");
const SELECT_INPUTS: &str = include_str!("../../sql/declarative/select_inputs.sql");
const INSERT_JOBSET: &str = include_str!("../../sql/declarative/insert_jobset.sql");
const UPDATE_JOBSET: &str = include_str!("../../sql/declarative/update_jobset.sql");
const DISABLE_JOBSETS: &str = include_str!("../../sql/declarative/disable_jobsets.sql");
const DELETE_INPUTS: &str = include_str!("../../sql/declarative/delete_inputs.sql");
const INSERT_INPUTS: &str = include_str!("../../sql/declarative/insert_inputs.sql");

/// Tries of a transaction that lost a race.
const TRIES_MAX: u32 = 5;

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
            tx.execute(DISABLE_JOBSETS, &[&project, &applied.disabled])?;
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
    let mut tries = 0;
    loop {
        tries += 1;
        let mut once = || {
            let mut tx = client.transaction()?;
            tx.batch_execute(include_str!("../../sql/admin/limit_lock_wait.sql"))?;
            let result = work(&mut tx)?;
            match mode {
                Mode::Apply => tx.commit()?,
                Mode::Rehearse => tx.rollback()?,
            }
            Ok(result)
        };
        match once() {
            Err(DbError::Statement(error))
                if super::error::is_retryable(&error) && tries < TRIES_MAX => {}
            result => return result,
        }
    }
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
    let rows = tx.query(LOCK_JOBSETS, &[&project])?;
    let mut jobsets: BTreeMap<String, JobsetSpec> =
        rows.iter().map(|row| (row.get(0), as_it_is(row))).collect();
    for row in tx.query(SELECT_INPUTS, &[&project])? {
        let (jobset, name): (String, String) = (row.get(0), row.get(1));
        let (kind, values): (String, i64) = (row.get(2), row.get(5));
        let input = SpecInput {
            // No specification says that, so such an input is always made anew.
            kind: match values {
                1 => kind,
                n => format!("{kind} with {n} values"),
            },
            value: row.get(4),
            email_responsible: row.get(3),
        };
        if let Some(jobset) = jobsets.get_mut(&jobset) {
            jobset.inputs.insert(name, input);
        }
    }
    Ok(jobsets)
}

fn as_it_is(row: &Row) -> JobsetSpec {
    JobsetSpec {
        enabled: row.get(1),
        hidden: row.get(2),
        kind: row.get(3),
        flake: row.get(4),
        description: row.get(5),
        nix_expr_input: row.get(6),
        nix_expr_path: row.get(7),
        check_interval: row.get(8),
        scheduling_shares: row.get(9),
        enable_email: row.get(10),
        enable_dynamic_run_command: row.get(11),
        email_override: row.get(12),
        keep_evaluations: row.get(13),
        inputs: BTreeMap::new(),
    }
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
    match write(&mut part, project, name, &after, before) {
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

fn write(
    tx: &mut Transaction<'_>,
    project: &str,
    name: &str,
    after: &JobsetSpec,
    before: Option<&JobsetSpec>,
) -> Result<(), DbError> {
    let row: [&(dyn ToSql + Sync); 15] = [
        &project,
        &name,
        &after.enabled,
        &after.hidden,
        &after.kind,
        &after.flake,
        &after.description,
        &after.nix_expr_input,
        &after.nix_expr_path,
        &after.check_interval,
        &after.scheduling_shares,
        &after.enable_email,
        &after.enable_dynamic_run_command,
        &after.email_override,
        &after.keep_evaluations,
    ];
    let sql = match before {
        None => INSERT_JOBSET,
        Some(_) => UPDATE_JOBSET,
    };
    tx.execute(sql, &row)?;
    if before.is_some_and(|before| before.inputs == after.inputs) {
        return Ok(());
    }
    tx.execute(DELETE_INPUTS, &[&project, &name])?;
    let inputs = &after.inputs;
    let names: Vec<&String> = inputs.keys().collect();
    let kinds: Vec<&String> = inputs.values().map(|input| &input.kind).collect();
    let told: Vec<i32> = inputs
        .values()
        .map(|input| i32::from(input.email_responsible))
        .collect();
    let values: Vec<&Option<String>> = inputs.values().map(|input| &input.value).collect();
    tx.execute(
        INSERT_INPUTS,
        &[&project, &name, &names, &kinds, &told, &values],
    )?;
    Ok(())
}
