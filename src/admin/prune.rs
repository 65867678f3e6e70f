//! `hydrad prune`: takes away what has been of no use for long: logs of earlier attempts, the ledger of notifications, and, if
//! asked to, steps of old builds.

use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context as _, Result};
use indicatif::ProgressBar;
use postgres::Client;
use serde_json::{json, Value};

use super::ask::confirm;
use super::clear_failed::age;
use super::connect::StateArgs;
use super::simulate::progress;
use super::table;
use crate::base::text::bytes_text;
use crate::db::ledger::GIVEN_UP_FACTOR;
use crate::db::prune::{self, OldEvents, OldSteps};
use crate::model::UnixSecs;
use crate::store::logs::{LogStore, OldLog};
use crate::sys::clock::unix_now;

const APPLICATION_NAME: &str = "hydrad-prune";
/// Folders of logs: the first two characters of a derivation's name.
const LOG_FOLDERS: u64 = 32 * 32;

/// Take away what nobody needs any more
///
/// Three things: the logs of earlier attempts (never the last log of a derivation), events of the notifier's ledger that have
/// ended, and, where prune_steps or --steps says so, the steps of old builds. First it says what and how much, then it asks.
/// Run it whenever you like: it works in small pieces, and a queue runner at work does not notice. The installation brings a
/// timer for it.
#[derive(clap::Args, Debug)]
#[command(
    after_help = "Exit code: 0, 2 if it could not be done or nobody could be asked.

Examples:
  hydrad prune --dry-run                     what would go
  hydrad prune --yes                         for a timer
  hydrad prune --attempt-logs 7d             logs of earlier attempts that are a week old
  hydrad prune --steps 365d                  and what builds consisted of that ended a year ago
  hydrad prune --attempt-logs 0 --ledger 30d the ledger alone: 0 leaves a thing alone"
)]
pub struct PruneArgs {
    #[command(flatten)]
    pub state: StateArgs,
    /// Remove logs of earlier attempts that were written at least this long ago (90, 15m, 12h, 30d; 0: none), instead of
    /// prune_attempt_logs in hydra.conf
    #[arg(long, value_name = "AGE", value_parser = age)]
    pub attempt_logs: Option<Duration>,
    /// Delete events of the ledger that ended at least this long ago (0: none), instead of notification_history in hydra.conf.
    /// What was given up stays ten times as long; what waits or is held always stays
    #[arg(long, value_name = "AGE", value_parser = age)]
    pub ledger: Option<Duration>,
    /// Delete the steps of builds that ended at least this long ago (0: none), instead of prune_steps in hydra.conf. The builds
    /// themselves stay, with their outputs, products, metrics and logs
    #[arg(long, value_name = "AGE", value_parser = age)]
    pub steps: Option<Duration>,
    /// Change nothing, only say what would go
    #[arg(long, conflicts_with = "yes")]
    pub dry_run: bool,
    /// Do not ask
    #[arg(long, short)]
    pub yes: bool,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

/// What is old; `None` is left alone.
struct Old {
    logs: Option<(UnixSecs, Vec<OldLog>)>,
    events: Option<(Times, OldEvents)>,
    steps: Option<(UnixSecs, OldSteps)>,
}

/// Before these times events have ended, or were given up.
#[derive(Clone, Copy)]
struct Times {
    ended: UnixSecs,
    given_up: UnixSecs,
}

/// # Errors
/// When something could not be read or removed; what was removed before stays so.
pub fn run(args: &PruneArgs) -> Result<ExitCode> {
    let settings = args.state.settings()?;
    let target = args.state.target(&settings)?;
    let now = unix_now();
    let before = |age: Duration| {
        now.saturating_sub(i64::try_from(age.as_secs()).unwrap_or(i64::MAX / GIVEN_UP_FACTOR))
    };
    // 0 is never.
    let chosen = |asked: Option<Duration>, configured: Option<Duration>| {
        asked.or(configured).filter(|age| !age.is_zero())
    };
    let mut client = target.connect(APPLICATION_NAME)?;
    let logs = LogStore::reader(&settings.data_dir);
    let old = Old {
        logs: match chosen(args.attempt_logs, settings.prune_attempt_logs) {
            Some(age) => Some((before(age), find_logs(&logs, before(age))?)),
            None => None,
        },
        events: match chosen(args.ledger, Some(settings.notification_history)) {
            Some(age) => {
                let factor = u32::try_from(GIVEN_UP_FACTOR).unwrap_or(u32::MAX);
                let times = Times {
                    ended: before(age),
                    given_up: before(age.saturating_mul(factor)),
                };
                let found = prune::count_events(&mut client, times.ended, times.given_up)?;
                Some((times, found))
            }
            None => None,
        },
        steps: match chosen(args.steps, settings.prune_steps) {
            Some(age) => {
                let found = prune::count_steps(&mut client, before(age))?;
                Some((before(age), found))
            }
            None => None,
        },
    };
    let something = !old.is_nothing();
    if !args.json {
        print!("{}", old.words(args.dry_run || something));
    }
    if args.dry_run || !something {
        if args.json {
            println!("{}", old.json(args.dry_run, None));
        }
        return Ok(ExitCode::SUCCESS);
    }
    if !args.yes {
        confirm("Shall this go?", "nothing was removed")?;
    }
    let gone = old.remove(&mut client)?;
    if args.json {
        println!("{}", old.json(false, Some(&gone)));
    } else {
        println!(
            "removed {} logs with {}, deleted {} events and {} steps",
            gone.logs,
            bytes_text(gone.log_bytes),
            gone.events,
            gone.steps
        );
    }
    Ok(ExitCode::SUCCESS)
}

fn find_logs(logs: &LogStore, before: UnixSecs) -> Result<Vec<OldLog>> {
    let bar = progress(LOG_FOLDERS, "folders of logs");
    let found = logs
        .old_attempts(before, &mut || bar.inc(1))
        .with_context(|| format!("cannot read the logs in {}", logs.dir().display()));
    bar.finish_and_clear();
    found
}

/// What is gone.
#[derive(Default)]
struct Gone {
    logs: u64,
    log_bytes: u64,
    events: u64,
    steps: u64,
}

impl Old {
    fn is_nothing(&self) -> bool {
        let logs = self.logs.as_ref().is_none_or(|(_, logs)| logs.is_empty());
        let events = self.events.is_none_or(|(_, old)| old.events == 0);
        logs && events && self.steps.is_none_or(|(_, old)| old.steps == 0)
    }

    fn log_bytes(&self) -> u64 {
        let logs = self.logs.iter().flat_map(|(_, logs)| logs);
        logs.map(|log| log.bytes).sum()
    }

    fn words(&self, all: bool) -> String {
        if !all {
            return "nothing is old enough to go\n".to_owned();
        }
        let now = unix_now();
        let since = |before: UnixSecs| table::duration((now - before).max(0));
        let mut rows = vec![["what", "older than", "how much"]
            .map(str::to_owned)
            .to_vec()];
        let mut row = |what: &str, before: Option<UnixSecs>, much: String| {
            let age = before.map_or_else(|| "never".to_owned(), since);
            rows.push(vec![what.to_owned(), age, much]);
        };
        match &self.logs {
            None => row("logs of earlier attempts", None, "left alone".to_owned()),
            Some((before, logs)) => row(
                "logs of earlier attempts",
                Some(*before),
                format!("{} files, {}", logs.len(), bytes_text(self.log_bytes())),
            ),
        }
        match &self.events {
            None => row("notifications that ended", None, "left alone".to_owned()),
            Some((times, old)) => row(
                "notifications that ended",
                Some(times.ended),
                format!("{} events, {} deliveries", old.events, old.deliveries),
            ),
        }
        match &self.steps {
            None => row("steps of builds", None, "left alone".to_owned()),
            Some((before, old)) => row(
                "steps of builds",
                Some(*before),
                format!("{} steps of up to {} builds", old.steps, old.builds),
            ),
        }
        table::table(&rows)
    }

    fn json(&self, dry_run: bool, gone: Option<&Gone>) -> Value {
        let nothing = Gone::default();
        let gone = gone.unwrap_or(&nothing);
        json!({
            "dryRun": dry_run,
            "attemptLogs": self.logs.as_ref().map(|(before, logs)| json!({
                "before": before, "files": logs.len(), "bytes": self.log_bytes(),
                "removed": gone.logs, "removedBytes": gone.log_bytes})),
            "ledger": self.events.as_ref().map(|(times, old)| json!({
                "before": times.ended, "givenUpBefore": times.given_up, "events": old.events,
                "deliveries": old.deliveries, "deleted": gone.events})),
            "steps": self.steps.as_ref().map(|(before, old)| json!({
                "before": before, "builds": old.builds, "steps": old.steps, "deleted": gone.steps})),
        })
    }

    fn remove(&self, client: &mut Client) -> Result<Gone> {
        let mut gone = Gone::default();
        if let Some((before, logs)) = &self.logs {
            let bar = progress(logs.len() as u64, "logs");
            for log in logs {
                let removed = log.remove(*before).with_context(|| {
                    format!(
                        "cannot remove {}; run this as the user that owns the logs",
                        log.path.display()
                    )
                })?;
                if removed {
                    gone.logs += 1;
                    gone.log_bytes += log.bytes;
                }
                bar.inc(1);
            }
            bar.finish_and_clear();
        }
        if let Some((times, old)) = &self.events {
            let bar = progress(old.events, "events");
            let done = &mut |events| bar.inc(events);
            gone.events = prune::delete_events(client, times.ended, times.given_up, done)?;
            bar.finish_and_clear();
        }
        if let Some((before, old)) = &self.steps {
            let bar: ProgressBar = progress(old.steps, "steps");
            gone.steps = prune::delete_steps(client, *before, &mut |steps| bar.inc(steps))?.steps;
            bar.finish_and_clear();
        }
        Ok(gone)
    }
}
