//! `hydrad notifications`: what the notifier's ledger holds, and decisions about it.

use std::process::ExitCode;
use std::time::Duration;

use anyhow::{ensure, Result};
use serde_json::{json, Value};

use super::clear_failed::age;
use super::connect::StateArgs;
use super::table;
use crate::base::text;
use crate::db::ledger::{self, Entry, Which};
use crate::sys::clock::unix_now;

const APPLICATION_NAME: &str = "hydrad-notifications";
/// Of an error so much is shown in the table.
const ERROR_BYTES_MAX: usize = 60;
/// Rows decided about in one call.
const DECIDED_MAX: i64 = 1_000_000;

/// What to do with the rows that are meant.
#[derive(clap::ValueEnum, Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Action {
    /// Show them: by default what waits, is held or was given up
    #[default]
    List,
    /// Deliver them (again): by default what is held or was given up
    Replay,
    /// Do not deliver them any more: by default what is held or was given up
    Discard,
}

/// Show what is to be delivered, was delivered or was given up; replay or discard it
///
/// What has been pending for more than `notification_max_age` when a notifier starts is held until `replay` or `discard`
/// decides. A running notifier follows at once; without one, the next does.
#[derive(clap::Args, Debug)]
#[command(after_help = "Examples:
  hydrad notifications                                  what waits, is held or was given up
  hydrad notifications --failed                         what failed at least once, and why
  hydrad notifications replay --held                    deliver what is held
  hydrad notifications replay --plugin GithubStatus --since 2d --delivered
  hydrad notifications discard --dry-run                what would be dropped
  hydrad notifications discard --build 1234")]
pub struct NotificationsArgs {
    #[command(flatten)]
    pub state: StateArgs,
    #[arg(value_enum, default_value_t)]
    pub action: Action,
    /// What waits
    #[arg(long)]
    pub pending: bool,
    /// What failed: given up, or waiting for another try
    #[arg(long)]
    pub failed: bool,
    /// What is held because of its age
    #[arg(long)]
    pub held: bool,
    /// What was delivered, discarded or superseded, or wanted by nobody
    #[arg(long)]
    pub delivered: bool,
    /// About this build
    #[arg(long, value_name = "ID")]
    pub build: Option<i32>,
    /// For this target, or all targets of this plugin (RunCommand, GithubStatus, Webhook, "Webhook ci")
    #[arg(long, value_name = "NAME")]
    pub plugin: Option<String>,
    /// Announced within this time (90, 15m, 12h, 30d)
    #[arg(long, value_name = "AGE", value_parser = age)]
    pub since: Option<Duration>,
    /// Show at most so many
    #[arg(long, value_name = "N", default_value_t = 200, value_parser = clap::value_parser!(i64).range(1..))]
    pub limit: i64,
    /// Only say what would be replayed or discarded
    #[arg(long)]
    pub dry_run: bool,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

impl NotificationsArgs {
    fn states(&self) -> Vec<&'static str> {
        let chosen: Vec<&'static str> = [
            (self.pending, &["new", "waiting"][..]),
            (self.failed, &["given_up", "waiting"]),
            (self.held, &["held"]),
            (
                self.delivered,
                &["delivered", "discarded", "superseded", "none"],
            ),
        ]
        .iter()
        .filter(|(chosen, _)| *chosen)
        .flat_map(|(_, states)| states.iter().copied())
        .collect();
        match (chosen.is_empty(), self.action) {
            (false, _) => chosen,
            (true, Action::List) => vec!["new", "waiting", "held", "given_up"],
            (true, _) => vec!["held", "given_up"],
        }
    }

    /// `--failed` alone means of those that wait only the tried ones.
    fn means(&self, entry: &Entry) -> bool {
        let tried_only = self.failed && !self.pending;
        !tried_only || entry.state != "waiting" || entry.attempts > 0
    }
}

/// # Errors
/// When nothing could be read or done.
pub fn run(args: &NotificationsArgs) -> Result<ExitCode> {
    ensure!(
        !args.dry_run || args.action != Action::List,
        "--dry-run goes with replay or discard"
    );
    let settings = args.state.settings()?;
    let target = args.state.target(&settings)?;
    let mut client = target.connect(APPLICATION_NAME)?;
    let now = unix_now();
    let states = args.states();
    let since = args.since.map_or(i64::MIN, |age| {
        now.saturating_sub(i64::try_from(age.as_secs()).unwrap_or(i64::MAX))
    });
    let mut entries = ledger::entries(
        &mut client,
        &Which {
            states: &states,
            build: args.build,
            plugin: args.plugin.as_deref(),
            since,
            rows_max: match args.action {
                Action::List => args.limit,
                _ => DECIDED_MAX,
            },
        },
    )?;
    entries.retain(|entry| args.means(entry));
    if !args.dry_run {
        match args.action {
            Action::List => {}
            Action::Replay => ledger::replay(&mut client, &entries, now)?,
            Action::Discard => ledger::discard(&mut client, &entries, now)?,
        }
    }
    report(args, &entries, now);
    Ok(ExitCode::SUCCESS)
}

fn report(args: &NotificationsArgs, entries: &[Entry], now: i64) {
    let verb = match (args.action, args.dry_run) {
        (Action::List, _) => "",
        (Action::Replay, true) => " would be replayed",
        (Action::Replay, false) => " are to be delivered now",
        (Action::Discard, true) => " would be discarded",
        (Action::Discard, false) => " are discarded",
    };
    if args.json {
        let list: Vec<Value> = entries.iter().map(as_json).collect();
        println!(
            "{}",
            json!({ "dryRun": args.dry_run, "notifications": list })
        );
        return;
    }
    let headings = [
        "event", "age", "channel", "payload", "target", "state", "tries", "error",
    ];
    let mut rows = vec![headings.map(str::to_owned).to_vec()];
    for entry in entries
        .iter()
        .take(usize::try_from(args.limit).unwrap_or(usize::MAX))
    {
        rows.push(vec![
            entry.event.to_string(),
            table::duration((now - entry.at).max(0)),
            entry.channel.clone(),
            text::clip(&entry.payload, 40).replace('\t', " "),
            entry.target.clone().unwrap_or_else(|| "-".to_owned()),
            entry.state.clone(),
            entry.attempts.to_string(),
            text::clip(entry.last_error.as_deref().unwrap_or(""), ERROR_BYTES_MAX)
                .replace('\n', " "),
        ]);
    }
    if rows.len() > 1 {
        print!("{}", table::table(&rows));
    }
    match args.action {
        Action::List if entries.is_empty() => println!("nothing of that kind in the ledger"),
        Action::List if entries.len() as i64 >= args.limit => {
            println!("there may be more: --limit shows more than {}", args.limit);
        }
        Action::List => {}
        _ => println!("{} notifications{verb}", entries.len()),
    }
}

fn as_json(entry: &Entry) -> Value {
    json!({
        "event": entry.event, "channel": entry.channel, "payload": entry.payload, "at": entry.at, "target": entry.target,
        "state": entry.state, "attempts": entry.attempts, "dueAt": entry.due_at, "error": entry.last_error,
    })
}
