//! The transaction of an evaluation: everything it found, visible at once, and told at the commit.

use std::collections::BTreeMap;

use super::arguments::Inputs;
use super::builds::{self, Build};
use super::progress::Progress;
use crate::db::evaluations::{self, EvaluationInput, EvaluationRow, Jobset, Notice, Session};
use crate::db::schema::Features;
use crate::db::DbError;
use crate::eval::job::Job;

/// What an evaluation found.
#[derive(Debug)]
pub struct Found {
    /// The jobset as it was when it began.
    pub jobset: Jobset,
    pub row: EvaluationRow,
    pub inputs: Inputs,
    pub jobs: Vec<Job>,
    /// The newest evaluation before.
    pub after: i32,
    /// When it began, Unix time.
    pub began: i32,
}

/// What an evaluation left.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Written {
    pub evaluation: i32,
    /// The builds are not those of the evaluation before.
    pub changed: bool,
    pub new: usize,
    pub old: usize,
    /// Jobs that could not be evaluated.
    pub failed: usize,
}

/// Writes it. When the connection was lost in the commit, what is there is found again.
///
/// # Errors
/// Of the database; nothing is written then.
pub fn write(
    session: &mut Session,
    found: &Found,
    trace: &str,
    features: Features,
    progress: &Progress,
) -> Result<Written, DbError> {
    let seed = u64::from(found.began.unsigned_abs()) << 32 | u64::from(std::process::id());
    let good = builds::good(&found.jobs, seed);
    let failed = found.jobs.iter().filter(|job| job.error.is_some()).count();
    let id = found.jobset.id;
    // What the last try found out, should its commit have happened after all.
    let mut last: Option<Written> = None;
    session.transact_knowing(|tx, renewed| {
        if renewed {
            let committed = evaluations::committed(tx, id, found.after, &found.row)?;
            if let (Some(evaluation), Some(written)) = (committed, last) {
                return Ok(Written {
                    evaluation,
                    ..written
                });
            }
        }
        let before = evaluations::newest_changed(tx, id)?;
        let members = match before {
            Some(evaluation) => evaluations::members(tx, evaluation, id)?,
            None => Vec::new(),
        };
        let decided = builds::decide(&members, &good);
        let old = decided.jobs.iter().filter_map(|(_, _, build)| match build {
            Build::Old { id, .. } => Some((*id, false)),
            Build::New(_) => None,
        });
        let mut all: BTreeMap<i32, bool> = old.collect();
        let fewer = match before {
            Some(evaluation) => {
                usize::try_from(evaluations::count_members(tx, evaluation)?) != Ok(all.len())
            }
            None => false,
        };
        let written = Written {
            evaluation: 0,
            changed: fewer || !decided.new.is_empty(),
            new: decided.new.len(),
            old: all.len(),
            failed,
        };
        last = Some(written);

        let builds = i32::try_from(all.len() + decided.new.len()).unwrap_or(i32::MAX);
        let row = EvaluationRow {
            builds: written.changed.then_some(builds),
            ..found.row.clone()
        };
        let evaluation = evaluations::insert_evaluation(tx, id, &row)?;
        let ids = evaluations::insert_builds(tx, id, row.timestamp, &decided.new, |done| {
            let words = || format!("{done} of {} new builds", decided.new.len());
            progress.at(|| {
                let numbers = [
                    ("builds".to_owned(), done.into()),
                    ("of".to_owned(), decided.new.len().into()),
                ];
                (numbers.into_iter().collect(), words())
            });
        })?;
        let mut notices: Vec<Notice> = Vec::with_capacity(decided.jobs.len() + 2);
        for (_, _, build) in &decided.jobs {
            notices.push(match build {
                Build::New(at) => ("build_queued", ids[*at].to_string()),
                Build::Old { id, finished: true } => {
                    ("cached_build_finished", format!("{evaluation}\t{id}"))
                }
                Build::Old { id, .. } => ("cached_build_queued", format!("{evaluation}\t{id}")),
            });
        }
        notices.push(("eval_added", format!("{trace}\t{id}\t{evaluation}")));
        if written.changed {
            all.extend(ids.iter().map(|id| (*id, true)));
            evaluations::insert_members(tx, evaluation, &all)?;
            let missing = |job: &str, drv: &str| {
                log::warn!("aggregate job ‘{job}’ has a constituent that is no job: {drv}");
            };
            let pairs = builds::constituents(&decided, &ids, missing);
            evaluations::insert_constituents(tx, &pairs)?;
            let inputs: Vec<EvaluationInput> = found.inputs.values().map(input_row).collect();
            evaluations::insert_inputs(tx, evaluation, &inputs, features.short_rev_length)?;
            // Evaluations commit in any order: only the lowest id tells a queue runner where to begin to read.
            notices.extend(ids.iter().min().map(|id| ("builds_added", id.to_string())));
        }
        evaluations::notify(tx, &notices)?;
        // Last, since others wait for the jobset's row.
        let now = row.timestamp;
        evaluations::finish_evaluation(tx, id, &row.error, now, found.began, trace)?;
        Ok(Written {
            evaluation,
            ..written
        })
    })
}

fn input_row(input: &crate::eval::input::FetchedInput) -> EvaluationInput {
    let length = input.short_rev.as_ref().map(String::len);
    EvaluationInput {
        name: input.name.clone(),
        kind: input.kind.clone(),
        uri: input.uri.clone(),
        revision: input.revision.clone(),
        value: input.value.clone(),
        dependency: input.dependency.map(|build| build.0),
        path: input.store_path.clone().unwrap_or_default(),
        sha256: input.sha256.clone(),
        short_rev_length: length.and_then(|length| i16::try_from(length).ok()),
    }
}
