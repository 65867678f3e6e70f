//! Which builds' results and derivations Hydra's rules keep, for `update-gc-roots`.

use std::fmt;

use postgres::{Client, IsolationLevel, Row, Transaction};

use super::DbError;
use crate::model::{BuildId, BuildStatus, UnixSecs};

/// Jobsets that are disabled and hidden keep nothing once they were not looked at for this long.
const FORGOTTEN_SECS: UnixSecs = 7 * 24 * 3600;
/// Builds whose outputs are asked for at once.
const BATCH: usize = 10_000;

/// Why a path is kept.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Why {
    Queued,
    /// Marked by a user.
    Marked,
    /// Among the newest evaluations of its jobset, or one with unfinished builds.
    Evaluation {
        jobset: String,
        evaluation: i32,
    },
    /// The newest success of a job of these evaluations.
    LastSuccess {
        jobset: String,
        job: String,
    },
}

impl Why {
    /// A few words, the same for all of a kind.
    pub fn kind(&self) -> &'static str {
        match self {
            Why::Queued => "queued",
            Why::Marked => "marked to be kept",
            Why::Evaluation { .. } => "in recent evaluations",
            Why::LastSuccess { .. } => "last successes",
        }
    }

    /// Whether the derivation of a build that failed is kept as well, so that it can be restarted.
    fn keeps_failed_drv(&self) -> bool {
        matches!(self, Why::Evaluation { .. } | Why::LastSuccess { .. })
    }
}

impl fmt::Display for Why {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Why::Queued => f.write_str("queued"),
            Why::Marked => f.write_str("marked to be kept"),
            Why::Evaluation { jobset, evaluation } => {
                write!(f, "in evaluation {evaluation} of {jobset}")
            }
            Why::LastSuccess { jobset, job } => write!(f, "the last success of {jobset}:{job}"),
        }
    }
}

/// A store path that is to be kept.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Wanted {
    pub path: String,
    pub build: BuildId,
    /// An output, else a derivation.
    pub is_output: bool,
    pub why: Why,
}

/// All that Hydra's rules keep (its `hydra-update-gc-roots`), as of one moment; a path may come more than once. Builds that
/// succeeded keep their outputs if `outputs` is set; queued builds, and failed ones of kept evaluations, their derivations.
/// `progress` is told how many of how many jobsets are done.
///
/// # Errors
/// Of the database: then nothing is known, and nobody may conclude that something is not wanted.
pub fn wanted(
    client: &mut Client,
    now: UnixSecs,
    outputs: bool,
    progress: &mut dyn FnMut(usize, usize),
) -> Result<Vec<Wanted>, DbError> {
    let mut tx = client
        .build_transaction()
        .isolation_level(IsolationLevel::RepeatableRead)
        .read_only(true)
        .start()?;
    let mut found = Found {
        outputs,
        ..Found::default()
    };
    for row in tx.query(include_str!("../../sql/roots/select_queued.sql"), &[])? {
        found.take(&row, Why::Queued);
    }
    for row in tx.query(include_str!("../../sql/roots/select_kept.sql"), &[])? {
        found.take(&row, Why::Marked);
    }
    let since = i32::try_from(now - FORGOTTEN_SECS).unwrap_or(i32::MAX);
    let jobsets = tx.query(
        include_str!("../../sql/roots/select_jobsets.sql"),
        &[&since],
    )?;
    let select_evaluations = tx.prepare(include_str!("../../sql/roots/select_evaluations.sql"))?;
    let select_builds = tx.prepare(include_str!("../../sql/roots/select_of_evaluations.sql"))?;
    let select_last = tx.prepare(include_str!("../../sql/roots/select_last_successes.sql"))?;
    for (done, jobset) in jobsets.iter().enumerate() {
        progress(done, jobsets.len());
        let (id, name, keepnr): (i32, String, i64) = (jobset.get(0), jobset.get(1), jobset.get(2));
        let evaluations: Vec<i32> = tx
            .query(&select_evaluations, &[&id, &keepnr])?
            .iter()
            .map(|row| row.get(0))
            .collect();
        if evaluations.is_empty() {
            continue;
        }
        for row in tx.query(&select_builds, &[&evaluations])? {
            let why = Why::Evaluation {
                jobset: name.clone(),
                evaluation: row.get(4),
            };
            found.take(&row, why);
        }
        for row in tx.query(&select_last, &[&evaluations, &id])? {
            let why = Why::LastSuccess {
                jobset: name.clone(),
                job: row.get(4),
            };
            found.take(&row, why);
        }
        found.look_up_outputs(BATCH, &mut tx)?;
    }
    progress(jobsets.len(), jobsets.len());
    found.look_up_outputs(1, &mut tx)?;
    tx.commit()?;
    Ok(found.wanted)
}

#[derive(Default)]
struct Found {
    outputs: bool,
    wanted: Vec<Wanted>,
    /// Builds whose outputs are still to be looked up.
    succeeded: std::collections::BTreeMap<BuildId, Why>,
}

impl Found {
    /// A row of id, drvPath, finished, buildStatus.
    fn take(&mut self, row: &Row, why: Why) {
        let build = BuildId(row.get(0));
        let finished = row.get::<_, i32>(2) != 0;
        let status = row
            .get::<_, Option<i32>>(3)
            .and_then(BuildStatus::from_code);
        let succeeded = matches!(
            status,
            Some(BuildStatus::Succeeded | BuildStatus::FailedWithOutput)
        );
        if finished && succeeded && self.outputs {
            self.succeeded.entry(build).or_insert_with(|| why.clone());
        }
        let failed = finished && status != Some(BuildStatus::Succeeded);
        if !finished || (failed && why.keeps_failed_drv()) {
            self.wanted.push(Wanted {
                path: row.get(1),
                build,
                is_output: false,
                why,
            });
        }
    }

    /// Once at least so many builds wait for it.
    fn look_up_outputs(&mut self, at_least: usize, tx: &mut Transaction) -> Result<(), DbError> {
        if self.succeeded.len() < at_least {
            return Ok(());
        }
        let succeeded = std::mem::take(&mut self.succeeded);
        let ids: Vec<i32> = succeeded.keys().map(|build| build.0).collect();
        for ids in ids.chunks(BATCH) {
            for row in tx.query(include_str!("../../sql/roots/select_outputs.sql"), &[&ids])? {
                let build = BuildId(row.get(0));
                self.wanted.push(Wanted {
                    path: row.get(1),
                    build,
                    is_output: true,
                    why: succeeded[&build].clone(),
                });
            }
        }
        Ok(())
    }
}
