//! Inspection: what the world knows about steps, in batches. Derivations are read and scanned in parallel,
//! validity and cached failures asked once a batch.
//!
//! What may be had without building goes on to the fetchers (`fetch`), which answer instead.
//!
//! Whatever fails for a reason of ours (PostgreSQL or the daemon away) is tried again until it works; a
//! derivation that cannot be used fails alone.

use std::collections::HashSet;
use std::io;
use std::panic::{catch_unwind, AssertUnwindSafe};
use std::sync::Arc;
use std::time::Duration;

use crossbeam_channel::Receiver;
use rayon::prelude::*;

use super::fetch::Job;
use super::{resolution, Context};
use crate::db::known_output;
use crate::db::pool::Conn;
use crate::db::DbError;
use crate::model::BuildOutput;
use crate::nix::derivation::{Derivation, DerivationFacts};
use crate::nix::products::{self, OutputScan};
use crate::nix::realisation::OutputId;
use crate::plan::event::{Event, QuestionId, StepFacts, StepSpec};
use crate::store::destination::Trouble;
use crate::sys::child::plain_error;
use crate::sys::heartbeat::{self, Patience};

/// Pause between attempts while something of ours is away.
const AWAY_PAUSE: Duration = Duration::from_secs(2);

/// How long a connection to the database may take to come.
const DATABASE_PATIENCE: Duration = Duration::from_secs(30);

/// What the inspectors are asked.
#[derive(Debug)]
pub enum Question {
    Inspect(Vec<(QuestionId, Arc<str>)>),
    Describe(QuestionId, Arc<str>),
}

/// The body of an inspector.
pub fn serve(context: &Context, parsers: &rayon::ThreadPool, questions: &Receiver<Question>) {
    loop {
        heartbeat::idle("waiting for questions");
        let Ok(question) = questions.recv() else {
            return;
        };
        match question {
            Question::Inspect(batch) => {
                let batch = context.leftovers.park(batch);
                let answers = inspect(context, parsers, &batch);
                context.tell_plan(Event::Facts { answers });
            }
            Question::Describe(question, drv) => {
                heartbeat::busy("describing outputs");
                let output = unless_panic(&drv, || describe(context, &drv))
                    .and_then(|described| described)
                    .map(Arc::new)
                    .map_err(String::into_boxed_str);
                context.tell_plan(Event::Described { question, output });
            }
        }
    }
}

/// What one derivation says, before validity is known.
enum Scanned {
    Known(StepFacts),
    Open {
        spec: StepSpec,
        outputs: Vec<String>,
        is_candidate: bool,
    },
    /// Where its outputs are has to be asked by these names.
    Unnamed {
        spec: StepSpec,
        ids: Vec<OutputId>,
    },
}

/// The answers about many derivations, except for those that a fetcher will give.
pub fn inspect(
    context: &Context,
    parsers: &rayon::ThreadPool,
    batch: &[(QuestionId, Arc<str>)],
) -> Vec<(QuestionId, StepFacts)> {
    heartbeat::busy("reading derivations");
    if batch.len() == 1 {
        // Not worth waking another thread.
        return inspect_few(context, batch);
    }
    let scanned = parsers.install(|| {
        batch
            .par_iter()
            .map(|(_, drv)| scan_watched(context, drv))
            .collect()
    });
    judge(context, batch, scanned)
}

/// The answers about a few derivations, without the help of other threads.
pub fn inspect_few(
    context: &Context,
    batch: &[(QuestionId, Arc<str>)],
) -> Vec<(QuestionId, StepFacts)> {
    let scan = |(_, drv): &(QuestionId, Arc<str>)| scan_watched(context, drv);
    let scanned = batch.iter().map(scan).collect();
    judge(context, batch, scanned)
}

/// Asks for validity and earlier failures of what was scanned.
fn judge(
    context: &Context,
    batch: &[(QuestionId, Arc<str>)],
    scanned: Vec<Scanned>,
) -> Vec<(QuestionId, StepFacts)> {
    let scanned: Vec<Scanned> = scanned
        .into_iter()
        .map(|scanned| find_outputs(context, scanned))
        .collect();
    let candidates: Vec<&str> = scanned
        .iter()
        .filter_map(|scanned| match scanned {
            Scanned::Open {
                outputs,
                is_candidate: true,
                ..
            } => Some(outputs),
            _ => None,
        })
        .flatten()
        .map(String::as_str)
        .collect();
    let valid = until_it_works(context, "the destination store", || {
        context.dest.valid_paths(&candidates)
    });
    let is_valid = |outputs: &[String]| outputs.iter().all(|path| valid.contains(path));
    let needed: Vec<&str> = scanned
        .iter()
        .filter_map(|scanned| match scanned {
            Scanned::Open { outputs, .. } if !is_valid(outputs) => Some(outputs),
            _ => None,
        })
        .flatten()
        .map(String::as_str)
        .collect();
    let failed = until_it_works(context, "the database", || match needed.is_empty() {
        true => Ok(HashSet::new()),
        false => failed_paths(&mut *context.pool.get(DATABASE_PATIENCE)?, &needed),
    });
    // What a fetcher may find there; with the local store as destination none of it.
    let here = match context.fetchers {
        Some(_) if !context.dest.is_local() && !needed.is_empty() => {
            until_it_works(context, "the local store", || {
                context.store.valid_paths(&needed)
            })
        }
        _ => HashSet::new(),
    };
    let answer = |((question, drv), scanned): (&(QuestionId, Arc<str>), Scanned)| {
        let facts = match scanned {
            Scanned::Known(facts) => facts,
            Scanned::Unnamed { spec, .. } => StepFacts::Needed(spec),
            Scanned::Open { outputs, .. } if is_valid(&outputs) => StepFacts::Valid,
            Scanned::Open { outputs, .. } if outputs.iter().any(|path| failed.contains(path)) => {
                StepFacts::FailedBefore
            }
            Scanned::Open { spec, outputs, .. } => match &context.fetchers {
                None => StepFacts::Needed(spec),
                Some(fetchers) => {
                    let job = Job {
                        question: *question,
                        drv: drv.clone(),
                        spec,
                        missing: outputs
                            .into_iter()
                            .filter(|path| !valid.contains(path))
                            .collect(),
                    };
                    // A fetcher that takes it answers.
                    return fetchers.offer(job, &here);
                }
            },
        };
        Some((*question, facts))
    };
    batch.iter().zip(scanned).filter_map(answer).collect()
}

/// Asks where outputs are whose paths the derivation does not tell. What was never built stays unnamed.
fn find_outputs(context: &Context, scanned: Scanned) -> Scanned {
    let Scanned::Unnamed { spec, ids } = scanned else {
        return scanned;
    };
    let found = until_it_works(context, "the destination store", || {
        context.realised(&ids).map(Some)
    });
    match found.and_then(|paths| paths.into_iter().collect::<Option<Vec<String>>>()) {
        Some(outputs) => Scanned::Open {
            spec,
            outputs,
            is_candidate: true,
        },
        None => Scanned::Unnamed { spec, ids },
    }
}

/// Reads and scans one derivation, visibly: a file system that hangs is named with it.
fn scan_watched(context: &Context, drv: &Arc<str>) -> Scanned {
    heartbeat::during("reading a derivation", Patience::Watchdog, || {
        heartbeat::about(Some(drv.clone()));
        unless_panic(drv, || scan(context, drv)).unwrap_or_else(|message| {
            Scanned::Known(StepFacts::Unreadable {
                message: message.into(),
            })
        })
    })
}

/// A mistake of ours with one derivation costs its builds alone. Otherwise the process would end, start again, and meet
/// the same derivation again.
fn unless_panic<T>(drv: &str, work: impl FnOnce() -> T) -> Result<T, String> {
    catch_unwind(AssertUnwindSafe(work))
        .map_err(|_| format!("BUG: an inspector panicked over {drv}; the log of hydrad says where"))
}

/// Reads and scans one derivation.
fn scan(context: &Context, drv: &str) -> Scanned {
    let unusable = |message: String| {
        Scanned::Known(StepFacts::Unreadable {
            message: message.into(),
        })
    };
    let bytes = loop {
        match context.store.read_drv(drv) {
            Ok(bytes) => break bytes,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                return Scanned::Known(StepFacts::Collected)
            }
            // The whole process or host is short of something: not this derivation's fault.
            Err(error) if is_shortage(&error) && !context.is_stopping() => {
                log::warn!("cannot read {drv} now: {}", plain_error(&error));
                std::thread::sleep(AWAY_PAUSE);
            }
            Err(error) => return unusable(format!("cannot read {drv}: {}", plain_error(&error))),
        }
    };
    if bytes.starts_with(resolution::DYNAMIC) {
        return unusable(format!(
            "{drv} has inputs that other derivations make while they are built; such dynamic derivations \
             cannot be built"
        ));
    }
    let facts = match DerivationFacts::scan(&bytes) {
        Ok(facts) => facts,
        Err(error) => return unusable(format!("{drv} is damaged: {error}")),
    };
    if let Some(why) = context.resolution.refusal(drv, facts.kind) {
        return unusable(why);
    }
    let kind = facts.kind;
    let outputs: Vec<String> = facts
        .outputs
        .iter()
        .filter_map(|(_, path)| path.as_deref())
        .map(str::to_owned)
        .collect();
    if outputs.is_empty() && kind.has_known_output_paths() {
        return unusable(format!("{drv} has no outputs"));
    }
    // Of what is not on disk the local store need not be asked.
    let is_candidate = !context.dest.is_local()
        || outputs
            .iter()
            .all(|path| std::fs::symlink_metadata(path).is_ok());
    let prefer_local = facts.prefer_local_build
        && context
            .local_host
            .could_build(&facts.platform, &facts.required_features);
    let spec = StepSpec {
        platform: facts.platform.into(),
        required_features: facts
            .required_features
            .into_iter()
            .map(String::into_boxed_str)
            .collect(),
        prefer_local,
        inputs: facts.input_drvs.into_iter().collect(),
    };
    if kind.has_known_output_paths() {
        return Scanned::Open {
            spec,
            outputs,
            is_candidate,
        };
    }
    let ids = Derivation::parse(&bytes)
        .map_err(|error| format!("{drv} is damaged: {error}"))
        .and_then(|derivation| {
            context
                .resolution
                .output_ids(&context.store, drv, &derivation)
        });
    match ids {
        Ok(ids) => Scanned::Unnamed { spec, ids },
        Err(why) => unusable(why),
    }
}

fn is_shortage(error: &io::Error) -> bool {
    matches!(
        error.raw_os_error(),
        Some(libc::EMFILE | libc::ENFILE | libc::ENOMEM | libc::EIO | libc::EAGAIN)
    )
}

/// Which of these paths an earlier build failed to make.
pub fn failed_paths(conn: &mut Conn, paths: &[&str]) -> Result<HashSet<String>, DbError> {
    let rows = conn.query(
        include_str!("../../sql/queue/select_failed_paths.sql"),
        &[&paths],
    )?;
    Ok(rows.iter().map(|row| row.get(0)).collect())
}

/// Asks again, with pauses, until there is an answer or the process stops.
fn until_it_works<T: Default, E: std::fmt::Display>(
    context: &Context,
    whom: &str,
    mut ask: impl FnMut() -> Result<T, E>,
) -> T {
    let mut told = false;
    loop {
        heartbeat::busy("asking the local store or the database");
        match ask() {
            Ok(answer) => return answer,
            Err(_) if context.is_stopping() => return T::default(),
            Err(error) => {
                if !told {
                    log::warn!("inspection waits for {whom}: {error}");
                    told = true;
                }
                heartbeat::idle("waiting for something of ours that is away");
                std::thread::sleep(AWAY_PAUSE);
            }
        }
    }
}

/// The output of a derivation whose outputs are all valid: as an earlier build recorded it, else from the store.
fn describe(context: &Context, drv: &str) -> Result<BuildOutput, String> {
    let bytes = context
        .store
        .read_drv(drv)
        .map_err(|error| format!("cannot read {drv}: {}", plain_error(&error)))?;
    let derivation = Derivation::parse(&bytes).map_err(|error| format!("{drv}: {error}"))?;
    let outputs: Vec<(String, String)> = context
        .outputs_of(drv, &derivation)?
        .into_iter()
        .map(|(name, path)| {
            let missing = || format!("output '{name}' of {drv} is not known any more");
            path.ok_or_else(missing).map(|path| (name.clone(), path))
        })
        .collect::<Result<_, String>>()?;
    describe_outputs(context, outputs)
}

/// The same of outputs whose paths are known.
///
/// # Errors
/// A message; also when one of them is not valid any more.
pub fn describe_outputs(
    context: &Context,
    outputs: Vec<(String, String)>,
) -> Result<BuildOutput, String> {
    let paths: Vec<&str> = outputs.iter().map(|(_, path)| path.as_str()).collect();
    let valid = context.dest.valid_paths(&paths)?;
    if let Some(missing) = paths.iter().find(|path| !valid.contains(**path)) {
        return Err(format!("{missing} is not valid any more"));
    }
    let known = context
        .pool
        .get(DATABASE_PATIENCE)
        .and_then(|mut conn| known_output::find(&mut conn, &paths))
        .map_err(|error| error.to_string())?;
    let output = match known {
        Some(known) => BuildOutput { outputs, ..known },
        None => from_store(context, &outputs)?,
    };
    for path in output.outputs.iter().map(|(_, path)| path) {
        context.roots.add(path).map_err(|error| {
            format!(
                "cannot register a GC root for {path} in {}: {}",
                context.roots.dir().display(),
                plain_error(&error)
            )
        })?;
    }
    Ok(output)
}

/// Reads what Hydra shows of these outputs from the destination store.
///
/// # Errors
/// A message naming the path at fault.
pub fn from_store(context: &Context, outputs: &[(String, String)]) -> Result<BuildOutput, String> {
    let dest = &context.dest;
    let paths: Vec<&str> = outputs.iter().map(|(_, path)| path.as_str()).collect();
    let text = |trouble: Trouble| {
        if let Trouble::Gone(_) = trouble {
            // Found out here, so that the next question about these outputs has another answer.
            let paths: Vec<String> = outputs.iter().map(|(_, path)| path.clone()).collect();
            let _ = dest.gone(&paths);
        }
        trouble.to_string()
    };
    let closure_size = dest.closure_size(&paths).map_err(text)?;
    let mut scans = Vec::with_capacity(outputs.len());
    for ((name, path), scan) in outputs.iter().zip(dest.scan(&paths).map_err(text)?) {
        scans.push(OutputScan {
            name: name.clone(),
            path: path.clone(),
            nar_size: dest.nar_size(path).map_err(text)?,
            scan,
        });
    }
    Ok(products::build_output(
        &scans,
        closure_size,
        context.store.dir(),
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_panic_over_one_derivation_is_an_answer_about_it_alone() {
        let drvs = [
            "/nix/store/a.drv",
            "/nix/store/poison.drv",
            "/nix/store/b.drv",
        ];
        let answers: Vec<_> = drvs
            .par_iter()
            .map(|drv| unless_panic(drv, || assert!(!drv.contains("poison"))))
            .collect();
        let bug =
            "BUG: an inspector panicked over /nix/store/poison.drv; the log of hydrad says where";
        assert_eq!(answers, [Ok(()), Err(bug.into()), Ok(())]);
    }
}
