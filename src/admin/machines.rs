//! `hydrad machines`: which machines there are and how they are; `hydrad machines test`: whether one can be built on.

use std::io::{IsTerminal, Write as _};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use anyhow::{bail, Context as _, Result};
use indicatif::{ProgressBar, ProgressStyle};
use serde_json::{json, Value};

use super::connect::{environment, StateArgs};
use super::{system_status, table};
use crate::base::lock::lock;
use crate::base::text::bytes_text;
use crate::config::machines::MachineLine;
use crate::config::settings::Settings;
use crate::db::orders;
use crate::nix::store_path::StoreDir;
use crate::plan::event::{MachineOrder, OrderState};
use crate::queue::machine::{Keeping, Machine, Registry, Ways};
use crate::queue::trial::{self, Check, Verdict};
use crate::queue::{deadlines, machines_files, programs};
use crate::store::local::LocalStore;
use crate::store::nix_conf;
use crate::sys::clock::unix_now;

const APPLICATION_NAME: &str = "hydrad-machines";
/// Machines tried at the same time.
const TRIALS_MAX: usize = 8;

/// Show the machines and how they are
///
/// What the running queue runner says: the machines it has, whether each takes steps and why not,
/// slots in use, steps done, Nix version and free space where they are known, the last error. If
/// none answers: the machines files that the environment names, and the operators' orders.
///
///   hydrad machines
///   hydrad machines --json | jq '.machines[] | select(.takes_steps | not)'
///   hydrad machines test builder@big.example.org
///
/// Exit code: 0 when the queue runner answers, 1 when it does not.
#[derive(clap::Args, Debug)]
#[command(verbatim_doc_comment, args_conflicts_with_subcommands = true)]
pub struct MachinesArgs {
    #[command(flatten)]
    pub state: StateArgs,
    /// Print JSON: {"answered", "machines": [{"name", "state", "told", ...}]}
    #[arg(long)]
    pub json: bool,
    #[command(subcommand)]
    pub what: Option<MachinesCommand>,
}

#[derive(clap::Subcommand, Debug)]
pub enum MachinesCommand {
    Test(TestArgs),
}

/// Try whether machines can be built on
///
/// Does with each machine what the queue runner does: connects, asks for version and free space,
/// finds out whether the account is trusted, sends a file of a few bytes, builds a line of text from
/// it for each system type and with all features, and fetches the result. Each line says ok, failed
/// (and what to do about it) or skipped (and why). Nothing is needed of a running hydrad or of the
/// database; the machines are those of the files that the environment names. Run it as the user
/// hydrad runs as. What it puts on a machine it deletes there.
///
///   hydrad machines test
///   hydrad machines test builder@big.example.org
///   hydrad machines test --json | jq '.machines[] | select(.ok | not).name'
///
/// Exit code: 0 when nothing failed, 1 when something did, 2 when there is no such machine.
#[derive(clap::Args, Debug)]
#[command(verbatim_doc_comment)]
pub struct TestArgs {
    #[command(flatten)]
    pub state: StateArgs,
    /// First column of the machines file; none: all machines
    #[arg(value_name = "NAME")]
    pub names: Vec<String>,
    /// Print JSON: {"ok", "machines": [{"name", "ok", "checks": [{"what", "result", "text", "advice", "secs"}]}]}
    #[arg(long)]
    pub json: bool,
}

/// # Errors
/// When neither a queue runner nor a machines file can be asked.
pub fn run(args: &MachinesArgs) -> Result<ExitCode> {
    match &args.what {
        Some(MachinesCommand::Test(args)) => test(args),
        None => show(args),
    }
}

fn show(args: &MachinesArgs) -> Result<ExitCode> {
    let settings = args.state.settings()?;
    let (report, orders, why_not) = match asked(&args.state, &settings) {
        Ok((Some(report), orders)) => (Some(report), orders, None),
        Ok((None, orders)) => {
            let why = "the queue runner does not answer: is it running?".to_owned();
            (None, orders, Some(why))
        }
        Err(error) => (None, Vec::new(), Some(format!("{error:#}"))),
    };
    let answered = report.is_some();
    let machines = match report {
        Some(report) => told(&report, &orders),
        None => configured(&orders)?,
    };
    if args.json {
        println!("{}", json!({"answered": answered, "machines": machines}));
    } else {
        print_machines(&machines);
    }
    if let Some(why) = why_not {
        eprintln!(
            "hydrad: {why}; these are the machines files of this environment, and the orders"
        );
    }
    Ok(match answered {
        true => ExitCode::SUCCESS,
        false => ExitCode::FAILURE,
    })
}

/// What the queue runner says, if it answers, and the orders.
fn asked(state: &StateArgs, settings: &Settings) -> Result<(Option<Value>, Vec<MachineOrder>)> {
    let target = state.target(settings)?;
    let mut client = target.connect(APPLICATION_NAME)?;
    let answer = system_status::ask(
        system_status::QUEUE_RUNNER,
        &target,
        &mut client,
        APPLICATION_NAME,
    )?;
    // Hydra's own queue runner answers too, and has no such table.
    let orders = orders::read(&mut client).unwrap_or_default();
    Ok((answer.report.filter(|_| answer.answered), orders))
}

fn told(report: &Value, orders: &[MachineOrder]) -> Vec<Value> {
    let machines = report["machines"].as_object();
    let named = machines.into_iter().flatten();
    named
        .filter(|(name, _)| *name != "ssh://localhost")
        .map(|(name, machine)| {
            json!({
                "name": name,
                "state": machine["standing"],
                "told": machine["told"],
                "takes_steps": machine["takesSteps"],
                "slots": machine["maxJobs"],
                "running": machine["currentJobs"],
                "steps_done": machine["nrStepsDone"],
                "systems": machine["systemTypes"],
                "supported_features": machine["supportedFeatures"],
                "mandatory_features": machine["mandatoryFeatures"],
                "nix_version": machine["nixVersion"],
                "free_bytes": machine["freeBytes"],
                "last_error": machine["lastError"],
                "order": order_json(name, orders),
            })
        })
        .collect()
}

/// From the files alone.
fn configured(orders: &[MachineOrder]) -> Result<Vec<Value>> {
    let machines = lines()?;
    let now = unix_now();
    let shown = |line: &MachineLine| {
        let order = in_force(&line.name, orders, now);
        let told = match order {
            Some(order) => {
                let reason = order.reason.as_deref().unwrap_or("no reason given");
                format!("was {} by {}: {reason}", order.state.word(), order.who)
            }
            None => "how it is is not known".into(),
        };
        json!({
            "name": line.name,
            "state": order.map_or("unknown", |order| order.state.word()),
            "told": told,
            "takes_steps": null,
            "slots": line.slots,
            "running": null,
            "steps_done": null,
            "systems": line.systems,
            "supported_features": line.supported,
            "mandatory_features": line.mandatory,
            "nix_version": null,
            "free_bytes": null,
            "last_error": null,
            "order": order_json(&line.name, orders),
        })
    };
    Ok(machines.iter().map(shown).collect())
}

fn in_force<'a>(name: &str, orders: &'a [MachineOrder], now: i64) -> Option<&'a MachineOrder> {
    orders.iter().find(|order| {
        *order.machine == *name
            && order.state != OrderState::Enabled
            && order.until.is_none_or(|until| now < until)
    })
}

fn order_json(name: &str, orders: &[MachineOrder]) -> Value {
    match in_force(name, orders, unix_now()) {
        None => Value::Null,
        Some(order) => json!({
            "state": order.state.word(),
            "who": order.who,
            "since": order.since,
            "until": order.until,
            "reason": order.reason,
        }),
    }
}

fn print_machines(machines: &[Value]) {
    let text = |value: &Value| match value {
        Value::Null => "?".to_owned(),
        Value::String(text) => text.clone(),
        Value::Array(items) => {
            let items: Vec<&str> = items.iter().filter_map(Value::as_str).collect();
            items.join(",")
        }
        other => other.to_string(),
    };
    let heading = [
        "machine", "state", "slots", "done", "nix", "free", "systems", "features",
    ];
    let mut rows = vec![heading.map(str::to_owned).to_vec()];
    for machine in machines {
        let used = format!("{}/{}", text(&machine["running"]), text(&machine["slots"]));
        let free = machine["free_bytes"]
            .as_u64()
            .map_or("?".into(), bytes_text);
        let version = text(&machine["nix_version"]);
        rows.push(vec![
            text(&machine["name"]),
            text(&machine["state"]),
            used,
            text(&machine["steps_done"]),
            version.rsplit(' ').next().unwrap_or_default().to_owned(),
            free,
            text(&machine["systems"]),
            text(&machine["supported_features"]),
        ]);
    }
    print!("{}", table::table(&rows));
    let mut first = true;
    for machine in machines {
        let usual = ["ready", "full", "unknown"].map(Value::from);
        let error = machine["last_error"]
            .as_str()
            .filter(|text| !text.is_empty());
        if usual.contains(&machine["state"]) && error.is_none() {
            continue;
        }
        if std::mem::take(&mut first) {
            println!();
        }
        let mut line = format!("‘{}’ {}", text(&machine["name"]), text(&machine["told"]));
        if let Some(error) = error.filter(|error| !line.contains(error.trim())) {
            line.push_str(&format!("; last error: {}", error.replace('\n', "; ")));
        }
        println!("{line}");
    }
    if machines.is_empty() {
        println!("no machine is configured");
    }
}

/// The machines that the environment names.
fn lines() -> Result<Vec<MachineLine>> {
    let mut files = machines_files(nix_conf::local_host());
    let read = files.read()?;
    for error in &read.errors {
        eprintln!("hydrad: machines file: {error}; the line is left out");
    }
    Ok(read.machines)
}

fn test(args: &TestArgs) -> Result<ExitCode> {
    let settings = args.state.settings()?;
    let mut machines = lines()?;
    if !args.names.is_empty() {
        for name in &args.names {
            if machines.iter().all(|line| line.name != *name) {
                let known: Vec<&str> = machines.iter().map(|line| line.name.as_str()).collect();
                bail!(
                    "no machine '{name}' in the machines files of this environment (the name is the first column); \
                     there are: {}",
                    known.join(", ")
                );
            }
        }
        machines.retain(|line| args.names.contains(&line.name));
    }
    if machines.is_empty() {
        bail!("the machines files of this environment (NIX_REMOTE_SYSTEMS, /etc/nix/machines) name no machine");
    }
    let scratch = Scratch::new()?;
    let store_dir = LocalStore::from_env(&environment, &settings.nix_daemon_program)
        .dir()
        .clone();
    let registry = Registry::new(Ways {
        deadlines: deadlines(&settings),
        keeping: Keeping {
            idle_max: settings.connection_idle,
            age_max: settings.connection_age,
        },
        programs: programs(&settings),
        key_dir: scratch.0.join("host-keys"),
    });
    let machines: Vec<Arc<Machine>> = machines
        .iter()
        .filter_map(|line| registry.get(registry.configure(&Arc::new(line.clone()))))
        .collect();
    let results = try_all(&machines, &store_dir, &scratch.0, args.json);
    let failed = |checks: &[Check]| checks.iter().any(|check| check.verdict == Verdict::Failed);
    let bad = results.iter().filter(|checks| failed(checks)).count();
    if args.json {
        let shown = machines.iter().zip(&results).map(|(machine, checks)| {
            let checks: Vec<Value> = checks.iter().map(check_json).collect();
            let ok = checks.iter().all(|check| check["result"] != "failed");
            json!({"name": machine.name, "ok": ok, "checks": checks})
        });
        let shown: Vec<Value> = shown.collect();
        println!("{}", json!({"ok": bad == 0, "machines": shown}));
    } else if machines.len() > 1 {
        println!(
            "{} of {} machines can be built on",
            machines.len() - bad,
            machines.len()
        );
    }
    Ok(match bad {
        0 => ExitCode::SUCCESS,
        _ => ExitCode::FAILURE,
    })
}

/// Tries several machines at a time; what is said of one stays together.
fn try_all(
    machines: &[Arc<Machine>],
    store_dir: &StoreDir,
    scratch: &Path,
    quiet: bool,
) -> Vec<Vec<Check>> {
    let colour = table::colour();
    let alone = machines.len() == 1;
    let bar = progress(machines.len());
    let next = AtomicUsize::new(0);
    let results: Vec<Mutex<Vec<Check>>> = machines.iter().map(|_| Mutex::default()).collect();
    if alone && !quiet {
        println!("{}", machines[0].name);
    }
    std::thread::scope(|scope| {
        for _ in 0..machines.len().min(TRIALS_MAX) {
            scope.spawn(|| loop {
                let at = next.fetch_add(1, Ordering::Relaxed);
                let Some(machine) = machines.get(at) else {
                    return;
                };
                let mut tell = |check: &Check| {
                    if alone && !quiet {
                        say(&bar, &check_text(check, colour));
                    }
                };
                let checks = trial::run(machine, store_dir, scratch, &mut tell);
                if !alone && !quiet {
                    let lines: String = checks.iter().map(|c| check_text(c, colour)).collect();
                    say(&bar, &format!("{}\n{lines}", machine.name));
                }
                *lock(&results[at]) = checks;
                bar.inc(1);
            });
        }
    });
    bar.finish_and_clear();
    results
        .into_iter()
        .map(|checks| std::mem::take(&mut *lock(&checks)))
        .collect()
}

fn say(bar: &ProgressBar, text: &str) {
    bar.suspend(|| {
        let mut out = std::io::stdout().lock();
        // Nobody reads any more: the exit code still tells.
        let _ = write!(out, "{text}").and_then(|()| out.flush());
    });
}

fn check_text(check: &Check, colour: bool) -> String {
    let on = match (colour, check.verdict) {
        (false, _) => "",
        (true, Verdict::Ok) => "\x1b[32m",
        (true, Verdict::Failed) => "\x1b[31m",
        (true, Verdict::Skipped) => "\x1b[33m",
    };
    let off = if colour { "\x1b[0m" } else { "" };
    let text = check.text.replace('\n', "\n                       ");
    let mut line = format!(
        "  {on}{:<7}{off}  {:<12}  {text}",
        check.verdict.word(),
        check.what
    );
    if check.took >= Duration::from_secs(1) {
        line.push_str(&format!(" ({:.1} s)", check.took.as_secs_f64()));
    }
    line.push('\n');
    if !check.advice.is_empty() {
        line.push_str(&format!("                       try: {}\n", check.advice));
    }
    line
}

fn check_json(check: &Check) -> Value {
    json!({
        "what": check.what,
        "result": check.verdict.word(),
        "text": check.text,
        "advice": check.advice,
        "secs": check.took.as_secs_f64(),
    })
}

fn progress(count: usize) -> ProgressBar {
    if !std::io::stderr().is_terminal() {
        return ProgressBar::hidden();
    }
    let bar = ProgressBar::new(count as u64);
    if let Ok(style) =
        ProgressStyle::with_template("{elapsed} [{bar:40}] {pos} of {len} machines tried")
    {
        bar.set_style(style);
    }
    bar.enable_steady_tick(Duration::from_secs(1));
    bar
}

/// A folder of this command's own, removed when it ends.
struct Scratch(PathBuf);

impl Scratch {
    fn new() -> Result<Scratch> {
        let nanos = std::time::SystemTime::now()
            .duration_since(std::time::UNIX_EPOCH)
            .map_or(0, |since| since.as_nanos());
        let name = format!("hydrad-machines-{}-{nanos}", std::process::id());
        let path = std::env::temp_dir().join(name);
        use std::os::unix::fs::DirBuilderExt;
        std::fs::DirBuilder::new()
            .mode(0o700)
            .create(&path)
            .with_context(|| format!("cannot make {}; is TMPDIR right?", path.display()))?;
        Ok(Scratch(path))
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        // What cannot be removed lies in the folder for temporary things.
        let _ = std::fs::remove_dir_all(&self.0);
    }
}
