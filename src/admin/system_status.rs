//! A service's own report, asked for through the database: its row of `SystemStatus`, renewed on a notification. The queue runner's
//! is renewed on `dump_status`, which Hydra's queue runner answers as well.

use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::Result;
use postgres::Client;
use serde_json::Value;

use super::connect::StateArgs;
use crate::db::connect::DbTarget;
use crate::db::listen::Listener;
use crate::db::{evaluator, DbError};

/// A service that is there answers within this time (Hydra's queue runner too).
const ANSWER_MAX: Duration = Duration::from_secs(5);

/// Whose report it is.
#[derive(Clone, Copy, Debug)]
pub struct Reporter {
    /// `SystemStatus.what`.
    what: &'static str,
    /// The channel on which it is asked, and the one on which it says that it has answered.
    asked: &'static str,
    answered: &'static str,
}

pub const QUEUE_RUNNER: Reporter = Reporter {
    what: "queue-runner",
    asked: "dump_status",
    answered: "status_dumped",
};
pub const EVALUATOR: Reporter = Reporter {
    what: "evaluator",
    asked: evaluator::ASKED,
    answered: evaluator::ANSWERED,
};

/// What is known of a service.
pub struct Answer {
    /// It has renewed its report just now.
    pub answered: bool,
    /// The report, as it is in the table.
    pub text: Option<String>,
    pub report: Option<Value>,
}

/// Asks for a new report and waits for it, but not for long.
///
/// # Errors
/// Of the database.
pub fn ask(
    reporter: Reporter,
    target: &DbTarget,
    client: &mut Client,
    application_name: &str,
) -> Result<Answer, DbError> {
    let mut listener = Listener::connect(target, application_name, &[reporter.answered])?;
    client.execute("select pg_notify($1, '')", &[&reporter.asked])?;
    let until = Instant::now() + ANSWER_MAX;
    let mut answered = false;
    while let Some(left) = until.checked_duration_since(Instant::now()) {
        if listener.next(left)?.is_some() {
            answered = true;
            break;
        }
    }
    let text = read(reporter, client)?;
    let report = text
        .as_deref()
        .and_then(|text| serde_json::from_str(text).ok());
    Ok(Answer {
        answered,
        text,
        report,
    })
}

/// As [`ask`], where there is a report; without one nobody is up, and nobody is asked.
///
/// # Errors
/// Of the database.
pub fn ask_if_up(
    reporter: Reporter,
    target: &DbTarget,
    client: &mut Client,
    application_name: &str,
) -> Result<Option<Answer>, DbError> {
    match read(reporter, client)? {
        None => Ok(None),
        Some(_) => ask(reporter, target, client, application_name).map(Some),
    }
}

/// The report as it is in the table; `None` if no such service is up.
fn read(reporter: Reporter, client: &mut Client) -> Result<Option<String>, DbError> {
    let row = client.query_opt(
        include_str!("../../sql/admin/select_system_status.sql"),
        &[&reporter.what],
    )?;
    Ok(row
        .map(|row| row.get::<_, String>(0))
        .filter(|text| !text.is_empty()))
}

/// `hydra-queue-runner --status`: the report on one line, as the C++ program prints it.
///
/// # Errors
/// Of the database.
pub fn print(state: &StateArgs) -> Result<ExitCode> {
    const NAME: &str = "hydrad-status";
    let target = state.target(&state.settings()?)?;
    let mut client = target.connect(NAME)?;
    // As in C++: where there is no report nobody is asked.
    let Some(answer) = ask_if_up(QUEUE_RUNNER, &target, &mut client, NAME)? else {
        println!("{{\"status\":\"down\"}}");
        return Ok(ExitCode::SUCCESS);
    };
    match &answer.text {
        Some(text) => println!("{}", text.replace('\n', " ")),
        None => println!("{{\"status\":\"down\"}}"),
    }
    if answer.answered {
        return Ok(ExitCode::SUCCESS);
    }
    eprintln!("error: queue runner did not respond; status information may be wrong");
    Ok(ExitCode::FAILURE)
}
