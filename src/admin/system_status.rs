//! The queue runner's own report, asked for through the database: the row `queue-runner` of `SystemStatus`, renewed on
//! NOTIFY `dump_status`. Hydra's queue runner answers the same.

use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::Result;
use postgres::Client;
use serde_json::Value;

use super::connect::StateArgs;
use crate::db::connect::DbTarget;
use crate::db::listen::Listener;
use crate::db::DbError;

/// A queue runner that is there answers within this time (Hydra's too).
const ANSWER_MAX: Duration = Duration::from_secs(5);

/// What is known of the queue runner.
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
    target: &DbTarget,
    client: &mut Client,
    application_name: &str,
) -> Result<Answer, DbError> {
    let mut listener = Listener::connect(target, application_name, &["status_dumped"])?;
    client.execute("select pg_notify('dump_status', '')", &[])?;
    let until = Instant::now() + ANSWER_MAX;
    let mut answered = false;
    while let Some(left) = until.checked_duration_since(Instant::now()) {
        if listener.next(left)?.is_some() {
            answered = true;
            break;
        }
    }
    let text = read(client)?;
    let report = text
        .as_deref()
        .and_then(|text| serde_json::from_str(text).ok());
    Ok(Answer {
        answered,
        text,
        report,
    })
}

/// Whether there is a report, so that a queue runner should be up.
///
/// # Errors
/// Of the database.
pub fn is_reported(client: &mut Client) -> Result<bool, DbError> {
    Ok(read(client)?.is_some())
}

/// The report as it is in the table; `None` if no queue runner is up.
fn read(client: &mut Client) -> Result<Option<String>, DbError> {
    let row = client.query_opt(
        include_str!("../../sql/admin/select_system_status.sql"),
        &[],
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
    if !is_reported(&mut client)? {
        println!("{{\"status\":\"down\"}}");
        return Ok(ExitCode::SUCCESS);
    }
    let answer = ask(&target, &mut client, NAME)?;
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
