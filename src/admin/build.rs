//! `hydrad build ...`: looks at builds, restarts, cancels and bumps them, for those without Hydra's web server.
//!
//! All of it is rows and Hydra's own triggers, so that it works from any host and for Hydra's queue runner too.

use std::process::ExitCode;

use anyhow::{bail, ensure, Context as _, Result};
use postgres::Client;
use serde_json::{json, Value};

use super::connect::{environment, StateArgs};
use super::table;
use crate::config::settings::Settings;
use crate::db::operate::{self, Changed, Done, Lane, Named};
use crate::model::BuildStatus;
use crate::store::local::LocalStore;
use crate::sys::clock::unix_now;

const APPLICATION_NAME: &str = "hydrad-build";
/// Step rows that `build show` lists at most; the newest are left out beyond that, and it says so.
const STEPS_MAX: i64 = 1_000;

/// Show, restart, cancel or bump builds
///
/// Works through the database, as Hydra's web server does: from any host, and whichever queue runner is at work.
#[derive(clap::Args, Debug)]
pub struct BuildArgs {
    #[command(subcommand)]
    pub action: BuildAction,
}

#[derive(clap::Subcommand, Debug)]
pub enum BuildAction {
    Show(ShowArgs),
    Restart(RestartArgs),
    Cancel(ChangeArgs),
    Bump(BumpArgs),
}

/// Show what is recorded of a build: how it ended, its outputs and the attempts of its steps
#[derive(clap::Args, Debug)]
#[command(
    after_help = "Why a queued build does not build yet: `hydrad explain ID`. Its log: `hydrad log ID`."
)]
pub struct ShowArgs {
    #[command(flatten)]
    pub state: StateArgs,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
    /// The build
    #[arg(value_name = "ID", value_parser = clap::value_parser!(i32).range(1..))]
    pub id: i32,
}

/// Build finished builds again
///
/// Forgets the failures that are recorded for their outputs and for those of their steps, so that what failed is
/// tried again, and queues the builds. Builds that depend on the same step and are not named stay as they are.
///
/// The derivations must still be in the local store; they get GC roots (so run this on the queue runner's host, as
/// its user). With --force neither is done, and a build whose derivation is gone ends as aborted again.
#[derive(clap::Args, Debug)]
#[command(
    after_help = "Examples:\n  hydrad build restart 1234\n  hydrad build restart 1234 1235 --json"
)]
pub struct RestartArgs {
    #[command(flatten)]
    pub change: ChangeArgs,
    /// Do not look for the derivations
    #[arg(long)]
    pub force: bool,
}

/// Cancel queued builds
///
/// They end as cancelled (4). What is running for them is stopped, unless another build wants it.
#[derive(clap::Args, Debug)]
#[command(
    after_help = "Exit code: 0 if all were changed, 1 if some were not (it says which and why), 2 if none could be."
)]
pub struct ChangeArgs {
    #[command(flatten)]
    pub state: StateArgs,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
    /// The builds
    #[arg(required = true, value_name = "ID", value_parser = clap::value_parser!(i32).range(1..))]
    pub ids: Vec<i32>,
}

/// Put queued builds before all others
///
/// Their global priority becomes one more than that of any queued build, or N. Steps that are running go on. A queue
/// runner only ever raises the priorities it has heard of: a lower one takes effect at its next start.
#[derive(clap::Args, Debug)]
#[command(
    after_help = "Examples:\n  hydrad build bump 1234\n  hydrad build bump --priority 100 1234 1235\n  hydrad build bump --emergency --for 2h 1234"
)]
pub struct BumpArgs {
    #[command(flatten)]
    pub change: ChangeArgs,
    /// The global priority, instead of the highest
    #[arg(long, value_name = "N", allow_negative_numbers = true)]
    pub priority: Option<i32>,
    /// Before everything else: machines that could do a step of theirs take nothing else until they have ended
    ///
    /// What runs goes on. hydrad's queue runner alone knows this; it is kept over restarts.
    #[arg(long)]
    pub emergency: bool,
    /// With --emergency: for this time at most (90, 15m, 12h)
    #[arg(long = "for", value_name = "AGE", requires = "emergency", value_parser = super::clear_failed::age)]
    pub lasts: Option<std::time::Duration>,
    /// End their emergency; the priority is changed as without
    #[arg(long, conflicts_with = "emergency")]
    pub no_emergency: bool,
}

/// # Errors
/// When nothing could be done.
pub fn run(args: &BuildArgs) -> Result<ExitCode> {
    match &args.action {
        BuildAction::Show(args) => show(args),
        BuildAction::Restart(args) => restart(args),
        BuildAction::Cancel(args) => cancel(args),
        BuildAction::Bump(args) => bump(args),
    }
}

fn connect(state: &StateArgs) -> Result<(Settings, Client)> {
    let settings = state.settings()?;
    let client = state.target(&settings)?.connect(APPLICATION_NAME)?;
    Ok((settings, client))
}

/// The ids as given, each once.
fn ids(args: &ChangeArgs) -> Vec<i32> {
    let mut ids = args.ids.clone();
    ids.sort_unstable();
    ids.dedup();
    ids
}

fn known(changed: Changed) -> Result<Done> {
    match changed {
        Changed::Done(done) => Ok(done),
        Changed::Unknown(ids) => {
            let ids: Vec<String> = ids.iter().map(i32::to_string).collect();
            bail!(
                "there is no build {}; nothing was changed",
                ids.join(", nor ")
            )
        }
    }
}

fn restart(args: &RestartArgs) -> Result<ExitCode> {
    let (settings, mut client) = connect(&args.change.state)?;
    let ids = ids(&args.change);
    if !args.force {
        let found = known(operate::look_up(&mut client, &ids)?)?;
        let finished = found.changed.iter().filter(|build| build.ended.is_some());
        keep_derivations(&settings, finished)?;
    }
    let done = known(operate::restart(&mut client, &ids)?)?;
    let code = report(&args.change, "restart", &done, |build| {
        format!("build {} is queued again  {}", build.id, build.name)
    });
    if !args.change.json && done.failures_cleared > 0 {
        println!("{} recorded failures forgotten", done.failures_cleared);
    }
    Ok(code)
}

/// The derivations must be there when the builds' turn comes: makes GC roots of them.
///
/// # Errors
/// When one is not there, or the roots cannot be made.
pub fn keep_derivations<'a>(
    settings: &Settings,
    builds: impl Iterator<Item = &'a Named>,
) -> Result<()> {
    let store = LocalStore::from_env(&environment, &settings.nix_daemon_program);
    let roots = super::gc_roots::open(settings)
        .context("run this as the user of the queue runner, or with --force")?;
    for build in builds {
        // The root first: what is there with it stays.
        super::gc_roots::keep(&roots, &build.drv)?;
        match store.read_drv(&build.drv) {
            Ok(_) => {}
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => bail!(
                "the derivation of build {}, {}, is not in the local store: it was garbage-collected, or this is not the \
                 host of the queue runner; evaluate it anew, or restart it with --force where you know better; nothing \
                 was changed",
                build.id,
                build.drv
            ),
            Err(error) => {
                return Err(error).with_context(|| format!("cannot read {}", build.drv));
            }
        }
    }
    Ok(())
}

fn cancel(args: &ChangeArgs) -> Result<ExitCode> {
    let (_, mut client) = connect(&args.state)?;
    let now = i32::try_from(unix_now()).unwrap_or(i32::MAX);
    let done = known(operate::cancel(&mut client, &ids(args), now)?)?;
    Ok(report(args, "cancel", &done, |build| {
        format!("build {} is cancelled  {}", build.id, build.name)
    }))
}

fn lane(args: &BumpArgs) -> Lane {
    let now = unix_now();
    match (args.emergency, args.no_emergency) {
        (true, _) => Lane::Emergency {
            now,
            until: args
                .lasts
                .map(|time| now.saturating_add(i64::try_from(time.as_secs()).unwrap_or(i64::MAX))),
        },
        (false, true) => Lane::Ordinary,
        (false, false) => Lane::AsIs,
    }
}

fn bump(args: &BumpArgs) -> Result<ExitCode> {
    if let Some(priority) = args.priority {
        ensure!(
            priority <= operate::PRIORITY_MAX,
            "--priority {priority}: the highest is {}",
            operate::PRIORITY_MAX
        );
    }
    let (_, mut client) = connect(&args.change.state)?;
    let done = known(operate::bump(
        &mut client,
        &ids(&args.change),
        args.priority,
        lane(args),
    )?)?;
    let priority = done.priority.unwrap_or(0);
    Ok(report(&args.change, "bump", &done, |build| {
        let lowered = if priority < build.global_priority {
            "; a queue runner that runs keeps the higher one until its next start"
        } else {
            ""
        };
        format!(
            "build {} has global priority {priority} (was {}{lowered})  {}",
            build.id, build.global_priority, build.name
        )
    }))
}

/// Says what was done and what was not.
fn report(
    args: &ChangeArgs,
    action: &str,
    done: &Done,
    line: impl Fn(&Named) -> String,
) -> ExitCode {
    if args.json {
        let changed: Vec<i32> = done.changed.iter().map(|build| build.id).collect();
        let refused: Vec<Value> = done
            .refused
            .iter()
            .map(|build| json!({"id": build.id, "job": build.name, "why": why_not(build)}))
            .collect();
        let mut answer = json!({"action": action, "changed": changed, "refused": refused});
        match action {
            "restart" => answer["failuresCleared"] = json!(done.failures_cleared),
            "bump" => answer["globalPriority"] = json!(done.priority),
            _ => {}
        }
        println!("{answer}");
    } else {
        for build in &done.changed {
            println!("{}", line(build));
        }
        for build in &done.refused {
            eprintln!(
                "hydrad: build {} was left alone: {}  {}",
                build.id,
                why_not(build),
                build.name
            );
        }
    }
    match (done.changed.is_empty(), done.refused.is_empty()) {
        (_, true) => ExitCode::SUCCESS,
        (false, false) => ExitCode::FAILURE,
        (true, false) => ExitCode::from(2),
    }
}

fn why_not(build: &Named) -> String {
    match build.ended {
        None => "it is still queued; cancel it first".to_owned(),
        Some(status) => format!("it has ended already ({})", words(status)),
    }
}

fn words(status: Option<BuildStatus>) -> &'static str {
    status.map_or("with an unknown status", BuildStatus::text)
}

// ---- show

fn show(args: &ShowArgs) -> Result<ExitCode> {
    let (_, mut client) = connect(&args.state)?;
    let row = client
        .query_opt(include_str!("../../sql/admin/show_build.sql"), &[&args.id])?
        .with_context(|| format!("there is no build {}", args.id))?;
    let outputs = client.query(
        include_str!("../../sql/admin/show_build_outputs.sql"),
        &[&args.id],
    )?;
    let steps = client.query(
        include_str!("../../sql/admin/show_build_steps.sql"),
        &[&args.id, &STEPS_MAX],
    )?;
    let build = build_json(&row, &outputs, &steps);
    if args.json {
        println!("{build}");
    } else {
        print_build(&build);
    }
    Ok(ExitCode::SUCCESS)
}

fn build_json(row: &postgres::Row, outputs: &[postgres::Row], steps: &[postgres::Row]) -> Value {
    let number = |at: usize| row.get::<_, Option<i32>>(at);
    let outputs: Vec<Value> = outputs
        .iter()
        .map(|row| {
            json!({"name": row.get::<_, String>(0), "path": row.get::<_, Option<String>>(1),
                "failureRecorded": row.get::<_, bool>(2)})
        })
        .collect();
    let steps: Vec<Value> = steps
        .iter()
        .map(|row| {
            json!({"step": row.get::<_, i32>(0),
                "type": if row.get::<_, i32>(1) == 1 { "substitution" } else { "build" },
                "drv": row.get::<_, Option<String>>(2), "busy": row.get::<_, i32>(3), "status": row.get::<_, Option<i32>>(4),
                "machine": row.get::<_, String>(5), "start": row.get::<_, Option<i32>>(6), "stop": row.get::<_, Option<i32>>(7),
                "message": row.get::<_, Option<String>>(8), "propagatedFrom": row.get::<_, Option<i32>>(9),
                "timesBuilt": row.get::<_, Option<i32>>(10),
                "nonDeterministic": row.get::<_, Option<bool>>(11)})
        })
        .collect();
    json!({
        "id": row.get::<_, i32>(0), "job": row.get::<_, String>(1), "drv": row.get::<_, String>(2),
        "system": row.get::<_, String>(3), "finished": row.get::<_, i32>(4) != 0, "status": number(5),
        "queued": row.get::<_, i32>(6), "start": number(7), "stop": number(8), "cached": row.get::<_, i32>(9) != 0,
        "globalPriority": row.get::<_, i32>(10), "priority": row.get::<_, i32>(11), "maxSilent": number(12),
        "timeout": number(13), "size": row.get::<_, Option<i64>>(14), "closureSize": row.get::<_, Option<i64>>(15),
        "releaseName": row.get::<_, Option<String>>(16), "notificationPendingSince": number(17),
        "name": row.get::<_, Option<String>>(18), "outputs": outputs, "steps": steps,
    })
}

fn print_build(build: &Value) {
    let text = |key: &str| build[key].as_str().unwrap_or("").to_owned();
    let number = |key: &str| build[key].as_i64().unwrap_or(0);
    let finished = build["finished"] == true;
    let cached = if build["cached"] == true && finished {
        ", cached"
    } else {
        ""
    };
    let state = if finished {
        format!(
            "{}{cached}, {} ago, took {}",
            status_words(&build["status"]),
            table::duration(unix_now() - number("stop")),
            table::duration(number("stop") - number("start")),
        )
    } else {
        format!(
            "queued for {}",
            table::duration(unix_now() - number("queued"))
        )
    };
    println!("build {}  {}\n", build["id"], text("job"));
    let mut rows = vec![
        vec!["state".to_owned(), state],
        vec!["derivation".to_owned(), text("drv")],
        vec!["system".to_owned(), text("system")],
        vec![
            "priority".to_owned(),
            format!(
                "{} global, {} local",
                number("globalPriority"),
                number("priority")
            ),
        ],
    ];
    for output in build["outputs"].as_array().into_iter().flatten() {
        let failed = if output["failureRecorded"] == true {
            "  (a failure is recorded: `hydrad clear-failed`)"
        } else {
            ""
        };
        rows.push(vec![
            format!("output {}", output["name"].as_str().unwrap_or("")),
            format!(
                "{}{failed}",
                output["path"].as_str().unwrap_or("not known yet")
            ),
        ]);
    }
    print!("{}", table::table(&rows));
    let steps = build["steps"].as_array().map_or(&[][..], Vec::as_slice);
    if steps.is_empty() {
        return;
    }
    let mut rows = vec![
        ["step", "status", "time", "machine", "derivation", "message"]
            .map(str::to_owned)
            .to_vec(),
    ];
    for step in steps {
        let time = match (step["start"].as_i64(), step["stop"].as_i64()) {
            (Some(start), Some(stop)) => table::duration(stop - start),
            (Some(start), None) if step["busy"] != 0 => table::duration(unix_now() - start),
            _ => String::new(),
        };
        let status = if step["busy"] != 0 {
            super::status::phase(step["busy"].as_i64().unwrap_or(0) as i32).to_owned()
        } else {
            status_words(&step["status"])
        };
        let drv = step["drv"].as_str().unwrap_or("");
        let mut message = step["message"]
            .as_str()
            .and_then(|message| message.lines().next())
            .unwrap_or("")
            .to_owned();
        if let Some(from) = step["propagatedFrom"].as_i64() {
            message = format!("see build {from} {message}");
        }
        rows.push(vec![
            step["step"].to_string(),
            status,
            time,
            step["machine"].as_str().unwrap_or("").to_owned(),
            drv.rsplit('/').next().unwrap_or(drv).to_owned(),
            message,
        ]);
    }
    print!("\n{}", table::table(&rows));
    if steps.len() as i64 == STEPS_MAX {
        println!("(only the first {STEPS_MAX} steps are shown)");
    }
}

fn status_words(status: &Value) -> String {
    match status.as_i64() {
        Some(code) => i32::try_from(code)
            .ok()
            .and_then(BuildStatus::from_code)
            .map_or_else(
                || format!("status {code}"),
                |status| status.text().to_owned(),
            ),
        None => "no status".to_owned(),
    }
}
