//! Answers to "why does this not build?": what the plan says now, and what the tables tell of the past.
//!
//! One JSON value for each answer, with the text for people in it, so that the command and the status address say the
//! same. Knows words; what is true comes from the plan and from `db::past`.

use std::time::Duration;

use crossbeam_channel::bounded;
use postgres::Client;
use serde_json::{json, Value};

use super::driver::Inbox;
use super::Context;
use crate::base::text::{clip, duration};
use crate::db::past::{self as tables, BuildRow, History, StepRow};
use crate::db::DbError;
use crate::model::{BuildId, BuildStatus, Phase, UnixSecs};
use crate::plan::explanation::{Explanation, MachineExplanation, Subject};
use crate::store::logs::LogStore;
use crate::sys::clock::unix_now;

/// How long the plan may take to answer.
const PLAN_PATIENCE: Duration = Duration::from_secs(10);
/// How long a connection to the database is waited for.
const CONNECTION_PATIENCE: Duration = Duration::from_secs(2);
/// Attempts that are shown.
const ATTEMPTS_SHOWN: usize = 5;
/// Of a message in a list.
const MESSAGE_BYTES_SHOWN: usize = 500;

impl Context {
    /// Why something does not build, as JSON with the lines for people under `text`; `known` is false if there is no
    /// such thing. What HTTP and `hydrad explain` show.
    pub fn explain(&self, subject: &Subject) -> Value {
        let (reply, answer) = bounded(1);
        let asked = self.plan.send(Inbox::Explain(subject.clone(), reply));
        let told = match asked.map(|()| answer.recv_timeout(PLAN_PATIENCE)) {
            Ok(Ok(told)) => told,
            _ => {
                return json!({"subject": subject_json(subject), "known": false, "answered_by": "queue-runner",
                    "text": ["the thread 'plan' does not answer; the log of hydrad says more"]})
            }
        };
        // The past of what waits now is in the plan as far as it matters.
        let is_over = match &told {
            None => true,
            Some(told) => is_finished(told),
        };
        let past = match subject {
            Subject::Machine(_) => None,
            _ if !is_over => None,
            _ => Some(
                self.pool
                    .get(CONNECTION_PATIENCE)
                    .and_then(|mut conn| past(conn.client(), subject)),
            ),
        };
        answer_json(subject, told.as_ref(), past, &self.logs, true)
    }

    /// How all machines are, as the machines file orders them.
    ///
    /// # Errors
    /// When the plan does not answer.
    pub fn explain_machines(&self) -> Result<Vec<MachineExplanation>, String> {
        let (reply, answer) = bounded(1);
        self.plan
            .send(Inbox::Machines(reply))
            .ok()
            .and_then(|()| answer.recv_timeout(PLAN_PATIENCE).ok())
            .ok_or_else(|| "the thread 'plan' does not answer".to_owned())
    }

    /// Answers a question that came through the database.
    pub fn answer(&self, question: &str) -> Value {
        let unknown =
            |what: &str| json!({"error": format!("this queue runner does not understand {what}")});
        let Ok(question) = serde_json::from_str::<Value>(question) else {
            return unknown("the question");
        };
        match question["ask"].as_str() {
            Some("explain") => match subject_of(&question["subject"]) {
                Some(subject) => self.explain(&subject),
                None => unknown("what is to be explained"),
            },
            Some("forget") => self.forget(&question),
            _ => unknown("the question"),
        }
    }
}

fn is_finished(told: &Explanation) -> bool {
    use crate::plan::explanation::BuildNow;
    matches!(told, Explanation::Build(build) if build.now == BuildNow::Finished)
}

/// A question for [`Context::answer`].
pub fn question(subject: &Subject) -> String {
    json!({"ask": "explain", "subject": subject_json(subject)}).to_string()
}

fn subject_json(subject: &Subject) -> Value {
    match subject {
        Subject::Build(id) => json!({"build": id.0}),
        Subject::Drv(drv) => json!({"drv": drv}),
        Subject::Machine(name) => json!({"machine": name}),
    }
}

fn subject_of(value: &Value) -> Option<Subject> {
    if let Some(id) = value["build"].as_i64() {
        return Some(Subject::Build(BuildId(i32::try_from(id).ok()?)));
    }
    if let Some(drv) = value["drv"].as_str() {
        return Some(Subject::Drv(drv.into()));
    }
    Some(Subject::Machine(value["machine"].as_str()?.into()))
}

/// What the tables tell of a build or derivation.
///
/// # Errors
/// Of the database.
pub fn past(client: &mut Client, subject: &Subject) -> Result<History, DbError> {
    match subject {
        Subject::Build(id) => tables::of_build(client, *id),
        Subject::Drv(drv) => tables::of_drv(client, drv),
        Subject::Machine(_) => Ok(History::default()),
    }
}

/// The answer, from what the plan told and what the tables tell. `by_queue_runner`: a running one took part.
pub fn answer_json(
    subject: &Subject,
    told: Option<&Explanation>,
    past: Option<Result<History, DbError>>,
    logs: &LogStore,
    by_queue_runner: bool,
) -> Value {
    let now = unix_now();
    let mut text = Vec::new();
    let mut answer = json!({
        "subject": subject_json(subject),
        "answered_by": if by_queue_runner { "queue-runner" } else { "tables" },
        "time": now,
    });
    let mut known = told.is_some();
    if let Some(told) = told {
        answer["now"] = told.json();
        if !is_finished(told) {
            text.extend(told.lines());
        }
    }
    match past {
        None => {}
        Some(Ok(past)) => {
            known |= past.build.is_some() || !past.attempts.is_empty();
            known |= !past.unfinished.is_empty();
            text.extend(past_lines(
                &past,
                told.is_some() || by_queue_runner,
                logs,
                now,
            ));
            answer["past"] = past_json(&past, logs);
        }
        Some(Err(error)) => {
            text.push(format!("what the tables tell is not known: {error}"));
            answer["error"] = error.to_string().into();
        }
    }
    let what = match subject {
        Subject::Build(id) => format!("build {id}"),
        Subject::Drv(drv) => format!("‘{drv}’"),
        Subject::Machine(name) => format!("machine ‘{name}’"),
    };
    if !known && answer.get("error").is_none() {
        text.insert(
            0,
            match subject {
                Subject::Build(_) => "there is no such build".into(),
                Subject::Drv(_) => {
                    "no unfinished build needs it, and it was never built here".into()
                }
                Subject::Machine(_) => {
                    "there is no such machine; `hydrad machines` lists them".into()
                }
            },
        );
    }
    if let Some(first) = text.first_mut() {
        *first = format!("{what}: {first}");
    }
    answer["known"] = known.into();
    answer["text"] = json!(text);
    answer
}

fn status_text(status: Option<(i32, Option<BuildStatus>)>) -> String {
    match status {
        None => "has no status".into(),
        Some((_, Some(status))) => status.text().into(),
        Some((number, None)) => format!("ended with status {number}"),
    }
}

fn age(now: UnixSecs, at: UnixSecs) -> String {
    duration(now.saturating_sub(at).max(0))
}

fn past_lines(past: &History, asked: bool, logs: &LogStore, now: UnixSecs) -> Vec<String> {
    let mut lines = Vec::new();
    if let Some(build) = &past.build {
        lines.push(build_line(build, now));
        if !build.finished && !asked {
            lines.push("no queue runner answers, so nobody knows what it waits for".into());
        } else if !build.finished {
            lines.push("the queue runner has not heard of it yet, or is about to forget it".into());
        }
    } else if !past.unfinished.is_empty() {
        let ids: Vec<String> = past.unfinished.iter().map(ToString::to_string).collect();
        let asked = if asked {
            "which the queue runner has not heard of yet"
        } else {
            "and no queue runner answers, so nobody knows what they wait for"
        };
        lines.push(format!(
            "unfinished builds of it: {}, {asked}",
            ids.join(", ")
        ));
    }
    for step in past.busy.iter().take(ATTEMPTS_SHOWN) {
        let phase = Phase::from_code(step.busy).map_or("busy", Phase::text);
        let since = step
            .start
            .map_or(String::new(), |at| format!(" since {}", age(now, at)));
        lines.push(format!(
            "by its rows step {}, ‘{}’, is {phase} on ‘{}’{since}",
            step.stepnr, step.drv, step.machine
        ));
    }
    let finished = past.build.as_ref().is_some_and(|build| build.finished);
    let succeeded = matches!(
        past.build.as_ref().and_then(|build| build.status),
        Some((0 | 6, _))
    );
    if finished && !succeeded {
        if let Some(failed) = past.failures.first() {
            let origin = match failed.propagated_from {
                Some(from) => format!(", in build {from}"),
                None => String::new(),
            };
            lines.push(format!(
                "because step {}, ‘{}’, {}{origin}",
                failed.stepnr,
                failed.drv,
                how_it_ended(failed)
            ));
        }
    }
    let attempts = past.attempts.iter().filter(|step| step.busy == 0);
    let attempts: Vec<&StepRow> = attempts.collect();
    let of_one = finished && succeeded && attempts.len() == 1;
    for step in attempts.iter().take(ATTEMPTS_SHOWN).filter(|_| !of_one) {
        let took = match (step.start, step.stop) {
            (Some(start), Some(stop)) => format!(" after {}", duration((stop - start).max(0))),
            _ => String::new(),
        };
        let when = step
            .stop
            .or(step.start)
            .map_or(String::new(), |at| format!("{} ago: ", age(now, at)));
        lines.push(format!(
            "{when}step {} of build {} {}{took}",
            step.stepnr,
            step.build,
            how_it_ended(step)
        ));
    }
    if attempts.len() > ATTEMPTS_SHOWN {
        lines.push("... and older attempts".to_owned());
    }
    for path in &past.cached_failures {
        lines.push(format!(
            "its output {path} counts as failed: as long as it does, it is not tried again"
        ));
    }
    lines.extend(log_path(past, logs).map(|path| format!("log: {path}")));
    lines
}

fn build_line(build: &BuildRow, now: UnixSecs) -> String {
    if !build.finished {
        return format!("{} is queued since {}", build.job, age(now, build.queued));
    }
    let when = build
        .stop
        .map_or(String::new(), |at| format!(" {} ago", age(now, at)));
    let how = match (build.start, build.stop) {
        _ if build.cached => "; nothing was built for it: that was known already".into(),
        (Some(start), Some(stop)) => format!(", after {}", duration((stop - start).max(0))),
        _ => String::new(),
    };
    format!(
        "{} ended{when}: {}{how}",
        build.job,
        status_text(build.status)
    )
}

fn how_it_ended(step: &StepRow) -> String {
    let on = match step.machine.as_str() {
        "" => String::new(),
        machine => format!(" on ‘{machine}’"),
    };
    let message = match step.message.as_deref() {
        None | Some("") => String::new(),
        Some(message) => {
            let message = message.trim().replace('\n', "; ");
            format!(": {}", clip(&message, MESSAGE_BYTES_SHOWN))
        }
    };
    format!("ended{on}: {}{message}", status_text(step.status))
}

/// Where the log is that tells most: of the newest attempt that ran.
fn log_path(past: &History, logs: &LogStore) -> Option<String> {
    let step = past.attempts.iter().find(|step| !step.machine.is_empty())?;
    let newest = logs.attempts(&step.drv).ok()?.pop();
    let path = newest.map_or_else(|| logs.path(&step.drv), |(_, path)| path);
    Some(path.display().to_string())
}

fn past_json(past: &History, logs: &LogStore) -> Value {
    let build = past.build.as_ref().map(|build| {
        json!({
            "id": build.id.0,
            "job": build.job,
            "drv": build.drv,
            "finished": build.finished,
            "status": build.status.map(|(number, _)| number),
            "status_text": status_text(build.status),
            "queued": build.queued,
            "start": build.start,
            "stop": build.stop,
            "cached": build.cached,
            "global_priority": build.global_priority,
            "local_priority": build.local_priority,
        })
    });
    let steps = |steps: &[StepRow]| -> Value { steps.iter().map(step_json).collect() };
    json!({
        "build": build,
        "failures": steps(&past.failures),
        "busy": steps(&past.busy),
        "attempts": steps(&past.attempts),
        "cached_failures": past.cached_failures,
        "unfinished_builds": past.unfinished.iter().map(|id| id.0).collect::<Vec<_>>(),
        "log": log_path(past, logs),
    })
}

fn step_json(step: &StepRow) -> Value {
    json!({
        "build": step.build.0,
        "step": step.stepnr,
        "drv": step.drv,
        "busy": step.busy,
        "status": step.status.map(|(number, _)| number),
        "message": step.message,
        "start": step.start,
        "stop": step.stop,
        "machine": step.machine,
        "propagated_from": step.propagated_from.map(|id| id.0),
    })
}
