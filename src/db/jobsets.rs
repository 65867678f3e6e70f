//! Projects, jobsets and their inputs as rows: reading, writing and deleting them as Hydra's web interface and its
//! declarative projects do.
//!
//! Knows what a change entails in other rows and what is announced by triggers or by itself. Does not know where a wish
//! came from, nor the rules for names and values (`config/project.rs`). Everything happens in the caller's transaction.

use std::collections::{BTreeMap, HashMap};

use postgres::types::ToSql;
use postgres::{Client, GenericClient, Row, Transaction};

use super::DbError;
use crate::config::declarative::{JobsetSpec, SpecInput, JOBSETS};
use crate::config::project::{Declarative, Project};

/// How often a transaction that lost a race is begun again.
const TRIES_MAX: u32 = 5;

/// A project with its name.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct StoredProject {
    pub name: String,
    pub settings: Project,
}

/// A jobset with what programs record of it. Times are Unix seconds.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct StoredJobset {
    pub id: i32,
    pub project: String,
    pub name: String,
    /// Every field that its row has is set.
    pub settings: JobsetSpec,
    pub last_checked: Option<i32>,
    /// It is to be evaluated soon, since then.
    pub triggered: Option<i32>,
    /// It is being evaluated, since then.
    pub started: Option<i32>,
    pub error_time: Option<i32>,
    pub error: Option<String>,
    pub fetch_error: Option<String>,
    pub forced: bool,
}

impl StoredJobset {
    /// `project:jobset`.
    pub fn full_name(&self) -> String {
        format!("{}:{}", self.project, self.name)
    }
}

/// Whether a written jobset is to be evaluated soon.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Trigger {
    /// When its interval is over, as after a declarative specification.
    ByInterval,
    /// Now, if it is enabled and polled; not at all otherwise. As after an edit in the web interface.
    AsEdited { now: i32 },
}

impl Trigger {
    fn time(self) -> Option<i32> {
        match self {
            Trigger::ByInterval => None,
            Trigger::AsEdited { now } => Some(now),
        }
    }
}

/// Does something in one transaction, which is begun again when it lost a race against another one. Rows that somebody else
/// holds are waited for as long as the commands that change builds wait, once. `work` says whether to commit.
///
/// # Errors
/// Of `work`, and of the database; nothing is changed then.
pub fn in_transaction<T>(
    client: &mut Client,
    mut work: impl FnMut(&mut Transaction<'_>) -> Result<(T, bool), DbError>,
) -> Result<T, DbError> {
    let mut tries = 0;
    loop {
        tries += 1;
        let mut once = || -> Result<T, DbError> {
            let mut tx = client.transaction()?;
            tx.batch_execute(include_str!("../../sql/admin/limit_lock_wait.sql"))?;
            let (result, keep) = work(&mut tx)?;
            match keep {
                true => tx.commit()?,
                false => tx.rollback()?,
            }
            Ok(result)
        };
        match once() {
            Err(error) if error.is_retryable() && !error.is_lock_timeout() && tries < TRIES_MAX => {
            }
            result => return result,
        }
    }
}

// ---- reading

/// Projects by name: these, or all.
///
/// # Errors
/// Of the database.
pub fn projects(
    client: &mut impl GenericClient,
    names: Option<&[&str]>,
) -> Result<Vec<StoredProject>, DbError> {
    let rows = client.query(
        include_str!("../../sql/jobsets/select_projects.sql"),
        &[&names],
    )?;
    Ok(rows.iter().map(stored_project).collect())
}

fn stored_project(row: &Row) -> StoredProject {
    let text = |at: usize| row.get::<_, Option<String>>(at).unwrap_or_default();
    let file = text(8);
    StoredProject {
        name: row.get(0),
        settings: Project {
            display_name: row.get(1),
            description: text(2),
            homepage: text(3),
            owner: row.get(4),
            enabled: row.get::<_, i32>(5) != 0,
            hidden: row.get::<_, i32>(6) != 0,
            enable_dynamic_run_command: row.get(7),
            declarative: (!file.is_empty()).then(|| Declarative {
                file,
                kind: text(9),
                value: text(10),
            }),
        },
    }
}

/// Jobsets by project and name: one, those of a project, or all.
///
/// # Errors
/// Of the database.
pub fn jobsets(
    client: &mut impl GenericClient,
    project: Option<&str>,
    name: Option<&str>,
) -> Result<Vec<StoredJobset>, DbError> {
    let rows = client.query(
        include_str!("../../sql/jobsets/select_jobsets.sql"),
        &[&project, &name],
    )?;
    let mut found: Vec<StoredJobset> = rows.iter().map(stored_jobset).collect();
    let places: HashMap<(String, String), usize> = found
        .iter()
        .enumerate()
        .map(|(at, jobset)| ((jobset.project.clone(), jobset.name.clone()), at))
        .collect();
    let rows = client.query(
        include_str!("../../sql/jobsets/select_inputs.sql"),
        &[&project, &name],
    )?;
    for row in &rows {
        let (kind, values): (String, i64) = (row.get(3), row.get(6));
        let input = SpecInput {
            // An old version of Hydra knew that. No specification says it, so such an input is always made anew.
            kind: match values {
                1 => kind,
                n => format!("{kind} with {n} values"),
            },
            value: row.get(5),
            email_responsible: row.get(4),
        };
        // A jobset that was made between the two statements is not among them.
        if let Some(at) = places.get(&(row.get(0), row.get(1))) {
            found[*at].settings.inputs.insert(row.get(2), input);
        }
    }
    Ok(found)
}

fn stored_jobset(row: &Row) -> StoredJobset {
    StoredJobset {
        id: row.get(0),
        project: row.get(1),
        name: row.get(2),
        settings: JobsetSpec {
            enabled: row.get(3),
            hidden: row.get(4),
            kind: row.get(5),
            flake: row.get(6),
            description: row.get(7),
            nix_expr_input: row.get(8),
            nix_expr_path: row.get(9),
            check_interval: row.get(10),
            scheduling_shares: row.get(11),
            enable_email: row.get(12),
            enable_dynamic_run_command: row.get(13),
            email_override: row.get(14),
            keep_evaluations: row.get(15),
            inputs: BTreeMap::new(),
        },
        last_checked: row.get(16),
        triggered: row.get(17),
        started: row.get(18),
        error_time: row.get(19),
        error: row.get(20),
        fetch_error: row.get(21),
        forced: row.get(22),
    }
}

/// How a jobset stands.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Standing {
    /// The newest evaluation that changed anything.
    pub evaluation: Option<i32>,
    /// Unfinished builds.
    pub queued: i64,
}

/// How the jobsets of a project, or all, stand, by id.
///
/// # Errors
/// Of the database.
pub fn standings(
    client: &mut impl GenericClient,
    project: Option<&str>,
) -> Result<HashMap<i32, Standing>, DbError> {
    let sql = include_str!("../../sql/jobsets/select_standing.sql");
    let rows = client.query(sql, &[&project])?;
    let standing = |row: &Row| Standing {
        evaluation: row.get(1),
        queued: row.get(2),
    };
    Ok(rows.iter().map(|row| (row.get(0), standing(row))).collect())
}

/// What a jobset of this name is called now.
///
/// # Errors
/// Of the database.
pub fn renamed_to(
    client: &mut impl GenericClient,
    project: &str,
    from: &str,
) -> Result<Option<String>, DbError> {
    let sql = include_str!("../../sql/jobsets/find_rename.sql");
    Ok(client
        .query_opt(sql, &[&project, &from])?
        .map(|row| row.get(0)))
}

/// Keeps projects from being changed by others until the end of the transaction.
///
/// # Errors
/// Of the database.
pub fn lock_projects(tx: &mut Transaction<'_>, names: &[&str]) -> Result<(), DbError> {
    tx.query(
        include_str!("../../sql/jobsets/lock_projects.sql"),
        &[&names],
    )?;
    Ok(())
}

/// Keeps a project as it is until the end of the transaction; others may do the same.
///
/// # Errors
/// Of the database.
pub fn share_project(tx: &mut Transaction<'_>, name: &str) -> Result<(), DbError> {
    tx.query(
        include_str!("../../sql/jobsets/share_project.sql"),
        &[&name],
    )?;
    Ok(())
}

/// Keeps a jobset, or all of a project, from being changed by others until the end of the transaction.
///
/// # Errors
/// Of the database.
pub fn lock_jobsets(
    tx: &mut Transaction<'_>,
    project: &str,
    name: Option<&str>,
) -> Result<(), DbError> {
    tx.query(
        include_str!("../../sql/jobsets/lock_jobsets.sql"),
        &[&project, &name],
    )?;
    Ok(())
}

/// Whether there is such a user.
///
/// # Errors
/// Of the database.
pub fn is_user(client: &mut impl GenericClient, name: &str) -> Result<bool, DbError> {
    let sql = include_str!("../../sql/jobsets/find_user.sql");
    Ok(client.query_one(sql, &[&name])?.get(0))
}

/// Some users' names.
///
/// # Errors
/// Of the database.
pub fn user_names(client: &mut impl GenericClient) -> Result<Vec<String>, DbError> {
    let rows = client.query(include_str!("../../sql/jobsets/select_user_names.sql"), &[])?;
    Ok(rows.iter().map(|row| row.get(0)).collect())
}

// ---- projects

/// Writes a project: a new one, or that of this name (locked). A declarative one gets its jobset `.jobsets`, to be
/// evaluated soon; one that is not declarative loses it.
///
/// # Errors
/// Of the database.
pub fn write_project(
    tx: &mut Transaction<'_>,
    name: &str,
    old: Option<&Project>,
    new: &Project,
    now: i32,
) -> Result<(), DbError> {
    let declarative = new.declarative.as_ref();
    let part = |part: fn(&Declarative) -> &String| declarative.map_or("", |d| part(d).as_str());
    let sql = match old {
        None => include_str!("../../sql/jobsets/insert_project.sql"),
        Some(_) => include_str!("../../sql/jobsets/update_project.sql"),
    };
    tx.execute(
        sql,
        &[
            &name,
            &new.display_name,
            &new.description,
            &new.homepage,
            &new.owner,
            &i32::from(new.enabled),
            &i32::from(new.hidden),
            &new.enable_dynamic_run_command,
            &part(|d| &d.file),
            &part(|d| &d.kind),
            &part(|d| &d.value),
        ],
    )?;
    if declarative.is_some() {
        tx.execute(
            include_str!("../../sql/jobsets/ensure_declared_jobset.sql"),
            &[&name, &now],
        )?;
    } else if old.is_some() {
        let declared = jobsets(tx, Some(name), Some(JOBSETS))?;
        let ids: Vec<i32> = declared.iter().map(|jobset| jobset.id).collect();
        if !ids.is_empty() {
            delete_jobsets(tx, &ids)?;
        }
    }
    if old.is_some_and(|old| old.enabled != new.enabled) {
        announce_scheduling(tx)?;
    }
    Ok(())
}

/// Gives a locked project another name.
///
/// # Errors
/// Of the database.
pub fn rename_project(tx: &mut Transaction<'_>, from: &str, to: &str) -> Result<(), DbError> {
    tx.execute(
        include_str!("../../sql/jobsets/rename_project.sql"),
        &[&from, &to],
    )?;
    announce_scheduling(tx)
}

/// Deletes a locked project with all its (locked) jobsets.
///
/// # Errors
/// Of the database.
pub fn delete_project(
    tx: &mut Transaction<'_>,
    name: &str,
    jobset_ids: &[i32],
) -> Result<(), DbError> {
    delete_jobsets(tx, jobset_ids)?;
    tx.execute(
        include_str!("../../sql/jobsets/delete_project.sql"),
        &[&name],
    )?;
    Ok(())
}

/// Tells evaluators to look at the jobsets again.
fn announce_scheduling(tx: &mut Transaction<'_>) -> Result<(), DbError> {
    tx.query(
        include_str!("../../sql/jobsets/announce_scheduling.sql"),
        &[],
    )?;
    Ok(())
}

// ---- jobsets

/// Writes a jobset with its inputs: a new one, or that of this name (locked), which was `before`. `after` is complete.
///
/// # Errors
/// Of the database.
pub fn write_jobset(
    tx: &mut Transaction<'_>,
    project: &str,
    name: &str,
    before: Option<&JobsetSpec>,
    after: &JobsetSpec,
    trigger: Trigger,
) -> Result<(), DbError> {
    let row: [&(dyn ToSql + Sync); 16] = [
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
        &trigger.time(),
    ];
    let sql = match before {
        None => include_str!("../../sql/jobsets/insert_jobset.sql"),
        Some(_) => include_str!("../../sql/jobsets/update_jobset.sql"),
    };
    tx.execute(sql, &row)?;
    if before.is_none() {
        forget_rename(tx, project, name)?;
    }
    if before.is_some_and(|before| before.inputs == after.inputs) {
        return Ok(());
    }
    tx.execute(
        include_str!("../../sql/jobsets/delete_inputs.sql"),
        &[&project, &name],
    )?;
    let inputs = &after.inputs;
    let names: Vec<&String> = inputs.keys().collect();
    let kinds: Vec<&String> = inputs.values().map(|input| &input.kind).collect();
    let told: Vec<i32> = inputs
        .values()
        .map(|input| i32::from(input.email_responsible))
        .collect();
    let values: Vec<&Option<String>> = inputs.values().map(|input| &input.value).collect();
    tx.execute(
        include_str!("../../sql/jobsets/insert_inputs.sql"),
        &[&project, &name, &names, &kinds, &told, &values],
    )?;
    Ok(())
}

/// Disables and hides locked jobsets, as a specification does it that no longer names them.
///
/// # Errors
/// Of the database.
pub fn hide_jobsets(
    tx: &mut Transaction<'_>,
    project: &str,
    names: &[String],
) -> Result<(), DbError> {
    tx.execute(
        include_str!("../../sql/jobsets/hide_jobsets.sql"),
        &[&project, &names],
    )?;
    Ok(())
}

/// Gives a locked jobset another name, under which Hydra's web server finds it for the old one too.
///
/// # Errors
/// Of the database.
pub fn rename_jobset(
    tx: &mut Transaction<'_>,
    project: &str,
    from: &str,
    to: &str,
) -> Result<(), DbError> {
    tx.execute(
        include_str!("../../sql/jobsets/rename_jobset.sql"),
        &[&project, &from, &to],
    )?;
    forget_rename(tx, project, to)?;
    tx.execute(
        include_str!("../../sql/jobsets/insert_rename.sql"),
        &[&project, &from, &to],
    )?;
    announce_scheduling(tx)
}

fn forget_rename(tx: &mut Transaction<'_>, project: &str, from: &str) -> Result<(), DbError> {
    tx.execute(
        include_str!("../../sql/jobsets/delete_rename.sql"),
        &[&project, &from],
    )?;
    Ok(())
}

/// Has a locked jobset evaluated soon; `force`: even if nothing has changed.
///
/// # Errors
/// Of the database.
pub fn trigger_jobset(
    tx: &mut Transaction<'_>,
    id: i32,
    now: i32,
    force: bool,
) -> Result<(), DbError> {
    tx.execute(
        include_str!("../../sql/jobsets/trigger_jobset.sql"),
        &[&id, &now, &force],
    )?;
    Ok(())
}

// ---- deleting

/// What is deleted together with jobsets.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Losses {
    pub evaluations: i64,
    pub builds: i64,
    /// Of the builds: not finished.
    pub queued: i64,
    /// Of the builds: marked to be kept for ever.
    pub kept: i64,
    /// Steps that run for them.
    pub running: i64,
}

/// # Errors
/// Of the database.
pub fn losses(client: &mut impl GenericClient, jobset_ids: &[i32]) -> Result<Losses, DbError> {
    let sql = include_str!("../../sql/jobsets/count_losses.sql");
    let row = client.query_one(sql, &[&jobset_ids])?;
    Ok(Losses {
        evaluations: row.get(0),
        builds: row.get(1),
        queued: row.get(2),
        kept: row.get(3),
        running: row.get(4),
    })
}

/// Evaluations of other jobsets that had builds of these as inputs, which Hydra's tables do not let go: `project:jobset` and
/// the evaluation, some of them.
///
/// # Errors
/// Of the database.
pub fn dependents(
    client: &mut impl GenericClient,
    jobset_ids: &[i32],
) -> Result<Vec<(String, i32)>, DbError> {
    let sql = include_str!("../../sql/jobsets/find_dependents.sql");
    let rows = client.query(sql, &[&jobset_ids])?;
    Ok(rows.iter().map(|row| (row.get(0), row.get(1))).collect())
}

/// Deletes locked jobsets with their evaluations and builds, in the order that the tables demand.
///
/// # Errors
/// Of the database.
pub fn delete_jobsets(tx: &mut Transaction<'_>, ids: &[i32]) -> Result<(), DbError> {
    for sql in [
        include_str!("../../sql/jobsets/delete_evaluations.sql"),
        include_str!("../../sql/jobsets/delete_build_inputs.sql"),
        include_str!("../../sql/jobsets/delete_builds.sql"),
        include_str!("../../sql/jobsets/delete_jobsets.sql"),
    ] {
        tx.execute(sql, &[&ids])?;
    }
    Ok(())
}
