//! What was announced: channel and payload to an event, as Hydra's notifier reads them. Pure.

use std::fmt;

/// The channels that events come on, in the order of Hydra's notifier; the last two are hydrad's own.
pub const CHANNELS: [&str; 12] = [
    "build_finished",
    "build_queued",
    "build_started",
    "cached_build_finished",
    "cached_build_queued",
    "eval_added",
    "eval_cached",
    "eval_failed",
    "eval_started",
    "step_finished",
    EVAL_ERROR_CHANGED,
    EVAL_FINISHED,
];

/// The new builds of an evaluation have all ended: evaluation, the time up to which an earlier such event told of them (or 0), and the
/// time of the last end. The notifier itself announces it where mails are collected.
pub const EVAL_FINISHED: &str = "eval_finished";

/// A jobset has an error that is not the one it had before: `traceId TAB jobset id`. Whoever writes that error puts the event into
/// the same transaction (`sql/queue/notify_all.sql`). Hydra has no such event: there the evaluator itself sends the mail.
pub const EVAL_ERROR_CHANGED: &str = "eval_error_changed";

/// An operator wants to see the metrics.
pub const DUMP_METRICS: &str = "hydra_notify_dump_metrics";

/// Something that plugins may want to tell of.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Event {
    BuildQueued {
        build: i32,
    },
    BuildStarted {
        build: i32,
    },
    BuildFinished {
        build: i32,
        dependents: Vec<i32>,
    },
    CachedBuildQueued {
        eval: i32,
        build: i32,
    },
    CachedBuildFinished {
        eval: i32,
        build: i32,
    },
    StepFinished {
        build: i32,
        stepnr: i32,
        log: Option<String>,
    },
    EvalStarted {
        trace: String,
        jobset: i32,
    },
    EvalFailed {
        trace: String,
        jobset: i32,
    },
    EvalErrorChanged {
        trace: String,
        jobset: i32,
    },
    EvalFinished {
        eval: i32,
        since: i32,
        upto: i32,
    },
    EvalAdded {
        trace: String,
        jobset: i32,
        eval: i32,
    },
    EvalCached {
        trace: String,
        jobset: i32,
        eval: i32,
    },
}

/// Why a payload is not an event.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("error processing message '{payload}' on channel '{channel}': {why}")]
pub struct BadPayload {
    pub channel: String,
    pub payload: String,
    pub why: &'static str,
}

/// Reads a payload.
///
/// # Errors
/// When it is not of the channel's form, or the channel is none of [`CHANNELS`].
pub fn parse(channel: &str, payload: &str) -> Result<Event, BadPayload> {
    let fields: Vec<&str> = payload.split('\t').collect();
    parsed(channel, &fields).map_err(|why| BadPayload {
        channel: channel.to_owned(),
        payload: payload.to_owned(),
        why,
    })
}

fn parsed(channel: &str, fields: &[&str]) -> Result<Event, &'static str> {
    let count = |wanted: usize| match fields.len() == wanted {
        true => Ok(()),
        false => Err("wrong number of fields"),
    };
    let trace = || fields[0].to_owned();
    Ok(match channel {
        "build_queued" | "build_started" => {
            count(1)?;
            let build = id(fields[0])?;
            match channel {
                "build_queued" => Event::BuildQueued { build },
                _ => Event::BuildStarted { build },
            }
        }
        "build_finished" => {
            let mut ids = fields.iter().map(|field| id(field));
            let build = ids.next().ok_or("wrong number of fields")??;
            let dependents = ids.collect::<Result<Vec<i32>, _>>()?;
            Event::BuildFinished { build, dependents }
        }
        "cached_build_queued" | "cached_build_finished" => {
            count(2)?;
            let (eval, build) = (id(fields[0])?, id(fields[1])?);
            match channel {
                "cached_build_queued" => Event::CachedBuildQueued { eval, build },
                _ => Event::CachedBuildFinished { eval, build },
            }
        }
        "step_finished" => {
            // Hydra's C++ queue runner says "no log" with an empty field.
            count(3)?;
            Event::StepFinished {
                build: id(fields[0])?,
                stepnr: id(fields[1])?,
                log: Some(fields[2])
                    .filter(|log| !log.is_empty() && *log != "-")
                    .map(str::to_owned),
            }
        }
        "eval_started" | "eval_failed" | EVAL_ERROR_CHANGED => {
            count(2)?;
            let (trace, jobset) = (trace(), id(fields[1])?);
            match channel {
                "eval_started" => Event::EvalStarted { trace, jobset },
                "eval_failed" => Event::EvalFailed { trace, jobset },
                _ => Event::EvalErrorChanged { trace, jobset },
            }
        }
        "eval_added" | "eval_cached" => {
            count(3)?;
            let (jobset, eval) = (id(fields[1])?, id(fields[2])?);
            match channel {
                "eval_added" => Event::EvalAdded {
                    trace: trace(),
                    jobset,
                    eval,
                },
                _ => Event::EvalCached {
                    trace: trace(),
                    jobset,
                    eval,
                },
            }
        }
        EVAL_FINISHED => {
            count(3)?;
            let (eval, since, upto) = (id(fields[0])?, id(fields[1])?, id(fields[2])?);
            Event::EvalFinished { eval, since, upto }
        }
        _ => return Err("unknown channel"),
    })
}

fn id(field: &str) -> Result<i32, &'static str> {
    match field.bytes().all(|byte| byte.is_ascii_digit()) && !field.is_empty() {
        true => field.parse().map_err(|_| "an id is too large"),
        false => Err("an id is not a number"),
    }
}

impl Event {
    /// Hydra's name of the hook.
    pub fn name(&self) -> &'static str {
        match self {
            Event::BuildQueued { .. } => "buildQueued",
            Event::BuildStarted { .. } => "buildStarted",
            Event::BuildFinished { .. } => "buildFinished",
            Event::CachedBuildQueued { .. } => "cachedBuildQueued",
            Event::CachedBuildFinished { .. } => "cachedBuildFinished",
            Event::StepFinished { .. } => "stepFinished",
            Event::EvalStarted { .. } => "evalStarted",
            Event::EvalFailed { .. } => "evalFailed",
            Event::EvalErrorChanged { .. } => "evalErrorChanged",
            Event::EvalFinished { .. } => "evalFinished",
            Event::EvalAdded { .. } => "evalAdded",
            Event::EvalCached { .. } => "evalCached",
        }
    }
}

/// The channel of a hook's name.
pub fn channel_of(name: &str) -> Option<&'static str> {
    Some(match name {
        "buildQueued" => "build_queued",
        "buildStarted" => "build_started",
        "buildFinished" => "build_finished",
        "cachedBuildQueued" => "cached_build_queued",
        "cachedBuildFinished" => "cached_build_finished",
        "stepFinished" => "step_finished",
        "evalStarted" => "eval_started",
        "evalFailed" => "eval_failed",
        "evalErrorChanged" => EVAL_ERROR_CHANGED,
        "evalFinished" => EVAL_FINISHED,
        "evalAdded" => "eval_added",
        "evalCached" => "eval_cached",
        _ => return None,
    })
}

impl fmt::Display for Event {
    /// For the log.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = self.name();
        match self {
            Event::BuildQueued { build }
            | Event::BuildStarted { build }
            | Event::BuildFinished { build, .. }
            | Event::CachedBuildQueued { build, .. }
            | Event::CachedBuildFinished { build, .. } => write!(f, "{name} of build {build}"),
            Event::StepFinished { build, stepnr, .. } => {
                write!(f, "{name} of step {stepnr} of build {build}")
            }
            Event::EvalStarted { jobset, .. }
            | Event::EvalFailed { jobset, .. }
            | Event::EvalErrorChanged { jobset, .. } => {
                write!(f, "{name} of jobset {jobset}")
            }
            Event::EvalAdded { eval, .. }
            | Event::EvalCached { eval, .. }
            | Event::EvalFinished { eval, .. } => {
                write!(f, "{name} of evaluation {eval}")
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn payloads_are_read_as_hydras_notifier_does() {
        let build_finished = Event::BuildFinished {
            build: 1,
            dependents: vec![2, 3],
        };
        assert_eq!(parse("build_finished", "1\t2\t3"), Ok(build_finished));
        assert_eq!(
            parse("build_queued", "7"),
            Ok(Event::BuildQueued { build: 7 })
        );
        let step = |log: Option<&str>| Event::StepFinished {
            build: 1,
            stepnr: 2,
            log: log.map(str::to_owned),
        };
        assert_eq!(parse("step_finished", "1\t2\t/a b"), Ok(step(Some("/a b"))));
        assert_eq!(parse("step_finished", "1\t2\t-"), Ok(step(None)));
        assert_eq!(parse("step_finished", "1\t2\t"), Ok(step(None)));
        let (trace, jobset, eval) = ("1.5.77".to_owned(), 4, 5);
        assert_eq!(
            parse("eval_added", "1.5.77\t4\t5"),
            Ok(Event::EvalAdded {
                trace,
                jobset,
                eval
            })
        );
        for (channel, payload) in [
            ("build_queued", ""),
            ("build_queued", "1\t2"),
            ("build_started", "-1"),
            ("build_finished", "1\t\t2"),
            ("build_finished", "1 2"),
            ("build_finished", "99999999999"),
            ("step_finished", "1\t2"),
            ("cached_build_queued", "1"),
            ("eval_failed", "x\ty"),
            ("nonsense", "1"),
        ] {
            assert!(parse(channel, payload).is_err(), "{channel} {payload:?}");
        }
    }

    #[test]
    fn every_channel_has_a_hook() {
        for channel in CHANNELS {
            let event = ["1", "1\t2", "1\t2\t3"]
                .iter()
                .find_map(|payload| parse(channel, payload).ok());
            let event = event.expect("one of these forms");
            assert_eq!(channel_of(event.name()), Some(channel));
        }
    }
}
