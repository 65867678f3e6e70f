//! `hydrad status`: how the queue runner and the evaluator are, asked through PostgreSQL, so that it works from any host.

use std::process::ExitCode;

use anyhow::Result;
use serde_json::{json, Value};

use super::connect::StateArgs;
use super::system_status::{self, EVALUATOR, QUEUE_RUNNER};
use super::{evaluator_status, table};
use crate::model::BuildStatus;
use crate::sys::clock::unix_now;

const APPLICATION_NAME: &str = "hydrad-status";

/// Show what the queue runner and the evaluator are doing
///
/// Asks them through the database (NOTIFY dump_status, hydrad_evaluator_status), so this works from any host that reaches it.
/// The evaluator is asked if one of hydrad's has been at work. Exit code: 0 when the queue runner answers, 1 when it does not.
#[derive(clap::Args, Debug)]
pub struct StatusArgs {
    #[command(flatten)]
    pub state: StateArgs,
    /// Print JSON: the services' own reports, the running steps and the last builds
    #[arg(long)]
    pub json: bool,
    /// How many finished builds to show
    #[arg(long, value_name = "N", default_value_t = 10)]
    pub last: u32,
}

/// # Errors
/// When the database cannot be asked.
pub fn run(args: &StatusArgs) -> Result<ExitCode> {
    let settings = args.state.settings()?;
    let target = args.state.target(&settings)?;
    let mut client = target.connect(APPLICATION_NAME)?;
    let system_status::Answer {
        answered, report, ..
    } = system_status::ask(QUEUE_RUNNER, &target, &mut client, APPLICATION_NAME)?;
    let evaluator = system_status::ask_if_up(EVALUATOR, &target, &mut client, APPLICATION_NAME)?;
    let unfinished: i64 = client
        .query_one(include_str!("../../sql/admin/count_queue.sql"), &[])?
        .get(0);
    let running = client.query(
        include_str!("../../sql/admin/select_running_steps.sql"),
        &[],
    )?;
    let recent = client.query(
        include_str!("../../sql/admin/select_recent_builds.sql"),
        &[&i64::from(args.last)],
    )?;
    if args.json {
        let running: Vec<Value> = running
            .iter()
            .map(|row| {
                json!({"build": row.get::<_, i32>(0), "step": row.get::<_, i32>(1), "phase": phase(row.get(2)),
                    "since": row.get::<_, i32>(3), "machine": row.get::<_, String>(4), "drv": row.get::<_, Option<String>>(5)})
            })
            .collect();
        let recent: Vec<Value> = recent
            .iter()
            .map(|row| {
                json!({"id": row.get::<_, i32>(0), "job": row.get::<_, String>(1), "status": row.get::<_, Option<i32>>(2),
                    "start": row.get::<_, Option<i32>>(3), "stop": row.get::<_, Option<i32>>(4),
                    "machine": row.get::<_, Option<String>>(5)})
            })
            .collect();
        println!(
            "{}",
            json!({"answered": answered, "unfinishedBuilds": unfinished, "runningSteps": running, "lastBuilds": recent,
                "queueRunner": report,
                "evaluator": evaluator.as_ref().map(|told| json!({"answered": told.answered, "report": told.report}))})
        );
    } else {
        print_report(answered, unfinished, report.as_ref());
        if let Some(evaluator) = &evaluator {
            evaluator_status::print(evaluator);
        }
        print_running(&running);
        print_recent(&recent);
    }
    Ok(if answered {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

pub fn phase(busy: i32) -> &'static str {
    match busy {
        1 => "preparing",
        10 => "connecting",
        20 => "sending inputs",
        30 => "building",
        35 => "waiting for a local slot",
        40 => "receiving outputs",
        50 => "post-processing",
        _ => "busy",
    }
}

fn print_report(answered: bool, unfinished: i64, report: Option<&Value>) {
    let number = |key: &str| report.and_then(|report| report[key].as_i64()).unwrap_or(0);
    if !answered {
        println!(
            "the queue runner does not answer: is it running? ({unfinished} builds are queued)"
        );
        return;
    }
    println!(
        "queue runner up for {}: {unfinished} builds queued, {} steps unfinished, {} runnable, {} active, {} done, {} retries",
        table::duration(number("uptime")),
        number("nrUnfinishedSteps"),
        number("nrRunnableSteps"),
        number("nrActiveSteps"),
        number("nrStepsDone"),
        number("nrRetries"),
    );
    let emergencies = report.and_then(|report| report["emergencies"].as_array());
    if let Some(builds) = emergencies.filter(|builds| !builds.is_empty()) {
        let builds: Vec<String> = builds.iter().map(Value::to_string).collect();
        println!(
            "emergency: build {} before everything else; machines that could do a step of it take nothing else",
            builds.join(", ")
        );
    }
    let list = |key: &str| {
        let items = report.and_then(|report| report[key].as_array());
        items.into_iter().flatten()
    };
    for hold in list("holds") {
        let why = hold["why"].as_str().unwrap_or_default();
        let since = table::duration(hold["secs"].as_i64().unwrap_or(0));
        println!("nothing is started since {since}: {why}");
    }
    if let Some(stall) = report.and_then(|report| report["stall"].as_str()) {
        println!("{stall}");
    }
    for stuck in list("stuckThreads") {
        println!("{}", stuck.as_str().unwrap_or_default());
    }
    let Some(machines) = report.and_then(|report| report["machines"].as_object()) else {
        return;
    };
    let mut rows = vec![["machine", "running", "done", "state"]
        .map(str::to_owned)
        .to_vec()];
    for (name, machine) in machines
        .iter()
        .filter(|(name, _)| *name != "ssh://localhost")
    {
        let failures = machine["consecutiveFailures"].as_i64().unwrap_or(0);
        let until = machine["disabledUntil"].as_i64().unwrap_or(0);
        let state = if machine["enabled"] == false {
            "removed".to_owned()
        } else if failures > 0 && until > unix_now() {
            let why = machine["lastError"].as_str().unwrap_or("");
            format!(
                "set aside for {} after {failures} failures: {why}",
                table::duration(until - unix_now())
            )
        } else if let Some(told) = machine["told"].as_str() {
            // Hydra's own queue runner says no more than what is above.
            told.to_owned()
        } else {
            "ready".to_owned()
        };
        let count = |key: &str| machine[key].as_i64().unwrap_or(0).to_string();
        rows.push(vec![
            name.clone(),
            count("currentJobs"),
            count("nrStepsDone"),
            state,
        ]);
    }
    print!("\n{}", table::table(&rows));
}

fn print_running(running: &[postgres::Row]) {
    if running.is_empty() {
        return;
    }
    let mut rows = vec![["build", "step", "phase", "for", "machine", "derivation"]
        .map(str::to_owned)
        .to_vec()];
    for row in running {
        let since = i64::from(row.get::<_, i32>(3));
        let drv: Option<String> = row.get(5);
        rows.push(vec![
            row.get::<_, i32>(0).to_string(),
            row.get::<_, i32>(1).to_string(),
            phase(row.get(2)).to_owned(),
            table::duration((unix_now() - since).max(0)),
            row.get(4),
            drv.unwrap_or_default()
                .rsplit('/')
                .next()
                .unwrap_or_default()
                .to_owned(),
        ]);
    }
    print!("\n{}", table::table(&rows));
}

fn print_recent(recent: &[postgres::Row]) {
    if recent.is_empty() {
        return;
    }
    let mut rows = vec![["build", "job", "status", "time", "machine"]
        .map(str::to_owned)
        .to_vec()];
    for row in recent {
        let status: Option<i32> = row.get(2);
        let time =
            row.get::<_, Option<i32>>(4).unwrap_or(0) - row.get::<_, Option<i32>>(3).unwrap_or(0);
        rows.push(vec![
            row.get::<_, i32>(0).to_string(),
            row.get(1),
            status
                .and_then(BuildStatus::from_code)
                .map_or_else(|| "?".to_owned(), |s| s.text().to_owned()),
            table::duration(i64::from(time)),
            row.get::<_, Option<String>>(5).unwrap_or_default(),
        ]);
    }
    print!("\n{}", table::table(&rows));
}
