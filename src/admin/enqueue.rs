//! `hydrad enqueue`: queues derivations by hand under a project and jobset, as an evaluation would.

use std::collections::{BTreeMap, HashMap};
use std::io::IsTerminal;
use std::path::PathBuf;
use std::process::{Command, ExitCode, Stdio};
use std::time::{Duration, Instant};

use anyhow::{bail, ensure, Context as _, Result};
use serde_json::{json, Value};

use super::connect::{environment, StateArgs};
use super::table;
use crate::db::connect::DbTarget;
use crate::db::enqueue::{self, Queueing};
use crate::db::evaluations::NewBuild;
use crate::db::listen::Listener;
use crate::db::schema;
use crate::model::BuildStatus;
use crate::nix::derivation::Derivation;
use crate::nix::expression;
use crate::nix::StoreDir;
use crate::store::local::LocalStore;

const APPLICATION_NAME: &str = "hydrad-enqueue";
/// How often --wait looks by itself, should a notification not come.
const LOOK_EVERY: Duration = Duration::from_secs(5);

/// Queue derivations by hand
///
/// Each FILE is a derivation (`.drv`, already in the store) or one Nix file whose derivations become jobs, named by
/// their attribute path. `meta.timeout`, `meta.maxSilent`, `meta.schedulingPriority` and aggregates
/// (`_hydraAggregate`, `constituents`) mean what they mean to Hydra.
///
/// With --wait the exit code is 0 when all builds succeeded, 1 when one did not.
#[derive(clap::Args, Debug)]
pub struct EnqueueArgs {
    #[command(flatten)]
    pub state: StateArgs,
    /// Project; made if it does not exist
    #[arg(long, short, default_value = "manual")]
    pub project: String,
    /// Jobset; made, disabled for evaluators, if it does not exist
    #[arg(long, short, default_value = "manual")]
    pub jobset: String,
    /// Only these attributes of the Nix file
    #[arg(long = "attr", short = 'A', value_name = "ATTR")]
    pub attrs: Vec<String>,
    /// Seconds a build may take, unless its meta says otherwise (0: no limit)
    #[arg(long, value_name = "SECS", default_value_t = 36_000)]
    pub timeout: i32,
    /// Seconds a build may be silent, unless its meta says otherwise (0: no limit)
    #[arg(long, value_name = "SECS", default_value_t = 7_200)]
    pub max_silent: i32,
    /// Priority within the jobset, unless its meta says otherwise
    #[arg(long, value_name = "N", default_value_t = 100)]
    pub priority: i32,
    /// Show progress until all builds have ended
    #[arg(long, short)]
    pub wait: bool,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
    /// Derivations, or one Nix file
    #[arg(required = true, value_name = "FILE")]
    pub files: Vec<PathBuf>,
}

/// # Errors
/// When nothing was queued, or the waiting cannot go on.
pub fn run(args: &EnqueueArgs) -> Result<ExitCode> {
    ensure!(
        args.timeout >= 0 && args.max_silent >= 0,
        "--timeout and --max-silent cannot be negative"
    );
    for (what, name) in [("project", &args.project), ("jobset", &args.jobset)] {
        ensure!(
            is_name(name),
            "'{name}' cannot be a {what}: letters, digits, '-', '_' and '.', a letter first"
        );
    }
    let settings = args.state.settings()?;
    let target = args.state.target(&settings)?;
    // Before an evaluation that may take long.
    let mut client = target.connect(APPLICATION_NAME)?;
    schema::check_schema(&mut client)?.serve()?;
    let builds = jobs(args, &settings.nix_daemon_program)?;
    let roots = super::gc_roots::open(&settings)?;
    for queued in &builds {
        super::gc_roots::keep(&roots, &queued.build.drv_path)?;
    }
    // Listening begins before the builds are there: no end of one is missed.
    let listener = if args.wait {
        Some(Listener::connect(
            &target,
            APPLICATION_NAME,
            &["build_finished"],
        )?)
    } else {
        None
    };
    let queued = enqueue::insert(&mut client, &args.project, &args.jobset, &builds)?;
    match listener {
        None => {
            report_queued(args, &builds, &queued);
            Ok(ExitCode::SUCCESS)
        }
        Some(listener) => wait(args, &target, listener, &queued),
    }
}

fn is_name(name: &str) -> bool {
    name.starts_with(|c: char| c.is_ascii_alphabetic() || c == '.')
        && name.len() <= 200
        && name
            .chars()
            .all(|c| c.is_ascii_alphanumeric() || "-_.".contains(c))
}

fn report_queued(args: &EnqueueArgs, builds: &[Queueing], queued: &enqueue::Queued) {
    if args.json {
        let list: Vec<Value> = builds
            .iter()
            .zip(&queued.builds)
            .map(|(queued, id)| {
                json!({"id": id, "job": queued.build.job, "drv": queued.build.drv_path})
            })
            .collect();
        println!(
            "{}",
            json!({"evaluation": queued.evaluation, "builds": list})
        );
        return;
    }
    for (queued, id) in builds.iter().zip(&queued.builds) {
        let job = &queued.build.job;
        println!("build {id}  {}:{}:{job}", args.project, args.jobset);
    }
}

/// What is to be queued.
fn jobs(args: &EnqueueArgs, daemon_program: &str) -> Result<Vec<Queueing>> {
    let is_drv = |file: &PathBuf| file.extension().is_some_and(|end| end == "drv");
    if args.files.iter().all(is_drv) {
        ensure!(
            args.attrs.is_empty(),
            "--attr chooses from a Nix file, not from derivations"
        );
        let store = LocalStore::from_env(&environment, daemon_program);
        let from_drv = |file| from_drv(args, store.dir(), file);
        return args.files.iter().map(from_drv).collect();
    }
    let [file] = args.files.as_slice() else {
        bail!("give either derivations (.drv) or one Nix file");
    };
    from_nix(args, file)
}

fn from_drv(args: &EnqueueArgs, store: &StoreDir, file: &PathBuf) -> Result<Queueing> {
    // Also by a link to it, as `nix-instantiate --add-root` makes, or from within the store.
    let path =
        std::fs::canonicalize(file).with_context(|| format!("cannot read {}", file.display()))?;
    let real_store = std::fs::canonicalize(&store.0).unwrap_or_else(|_| PathBuf::from(&store.0));
    ensure!(
        path.parent() == Some(&real_store),
        "{} is not in the store {}",
        file.display(),
        store.0
    );
    let path = path
        .file_name()
        .and_then(|name| name.to_str())
        .map(|name| store.join(name))
        .context("a store path is plain text")?;
    let text = std::fs::read(file).with_context(|| format!("cannot read {path}"))?;
    let drv = Derivation::parse(&text).with_context(|| format!("{path} is not a derivation"))?;
    let base = path
        .rsplit('/')
        .next()
        .unwrap_or(&path)
        .trim_end_matches(".drv");
    let name = base
        .split_once('-')
        .map_or(base, |(_, name)| name)
        .to_owned();
    let build = NewBuild {
        job: name
            .chars()
            .map(|c| {
                if c.is_ascii_alphanumeric() || "-_.".contains(c) {
                    c
                } else {
                    '_'
                }
            })
            .collect(),
        nix_name: name,
        system: drv.platform,
        outputs: drv
            .outputs
            .into_iter()
            .map(|(name, output)| (name, output.path))
            .collect(),
        max_silent: args.max_silent,
        timeout: args.timeout,
        priority: args.priority,
        is_channel: false,
        drv_path: path,
        ..NewBuild::default()
    };
    Ok(Queueing {
        build,
        constituents: Vec::new(),
    })
}

/// Evaluates a Nix file and takes its derivations as jobs.
fn from_nix(args: &EnqueueArgs, file: &PathBuf) -> Result<Vec<Queueing>> {
    let file =
        std::fs::canonicalize(file).with_context(|| format!("cannot read {}", file.display()))?;
    let attrs = args
        .attrs
        .iter()
        .map(|attr| expression::string(attr))
        .collect::<Vec<_>>()
        .join(" ");
    let file_text = file
        .to_str()
        .context("the Nix file's path is not plain text")?;
    let expression = format!(
        "({}) {{ file = /. + {}; attrs = [ {attrs} ]; }}",
        include_str!("jobs.nix"),
        expression::string(file_text)
    );
    let output = Command::new("nix-instantiate")
        .args([
            "--eval",
            "--strict",
            "--json",
            "--read-write-mode",
            "-E",
            &expression,
        ])
        .stdin(Stdio::null())
        .output()
        .context("cannot start nix-instantiate; is Nix installed and in PATH?")?;
    if !output.status.success() {
        bail!(
            "{} cannot be evaluated:\n{}",
            file.display(),
            String::from_utf8_lossy(&output.stderr).trim()
        );
    }
    let list: Vec<Value> =
        serde_json::from_slice(&output.stdout).context("nix-instantiate did not print JSON")?;
    let bad: Vec<String> = list
        .iter()
        .filter_map(|job| {
            Some(format!(
                "  {}: {}",
                job["name"].as_str()?,
                job["error"].as_str()?
            ))
        })
        .collect();
    ensure!(
        bad.is_empty(),
        "nothing was queued, since some jobs are wrong (`nix-instantiate {} -A JOB` says why):\n{}",
        file.display(),
        bad.join("\n")
    );
    ensure!(
        !list.is_empty(),
        "{} has no derivations{}",
        file.display(),
        if args.attrs.is_empty() {
            ""
        } else {
            " in these attributes"
        }
    );
    list.iter().map(|job| from_json(args, job)).collect()
}

fn from_json(args: &EnqueueArgs, job: &Value) -> Result<Queueing> {
    let text = |key: &str| -> Result<String> {
        Ok(job[key]
            .as_str()
            .with_context(|| format!("nix-instantiate gave a job without {key}"))?
            .to_owned())
    };
    let number = |key: &str, default: i32| {
        job[key]
            .as_i64()
            .and_then(|n| i32::try_from(n).ok())
            .unwrap_or(default)
    };
    let outputs: BTreeMap<String, Option<String>> = job["outputs"]
        .as_object()
        .context("nix-instantiate gave a job without outputs")?
        .iter()
        .map(|(name, path)| (name.clone(), path.as_str().map(str::to_owned)))
        .collect();
    let name = text("name")?;
    let constituents = job["constituents"]
        .as_array()
        .map_or_else(Vec::new, |list| {
            list.iter()
                .filter_map(|c| {
                    let by_job = c["job"]
                        .as_str()
                        .map(|job| enqueue::Constituent::Job(job.to_owned()));
                    by_job
                        .or_else(|| Some(enqueue::Constituent::Drv(c["drv"].as_str()?.to_owned())))
                })
                .collect()
        });
    let build = NewBuild {
        job: if name.is_empty() {
            text("nixName")?
        } else {
            name
        },
        nix_name: text("nixName")?,
        drv_path: text("drv")?,
        system: text("system")?,
        outputs,
        description: job["description"].as_str().map(str::to_owned),
        homepage: job["homepage"].as_str().map(str::to_owned),
        max_silent: number("maxSilent", args.max_silent),
        timeout: number("timeout", args.timeout),
        priority: number("priority", args.priority),
        is_channel: job["isChannel"].as_bool().unwrap_or(false),
        ..NewBuild::default()
    };
    Ok(Queueing {
        build,
        constituents,
    })
}

/// Waits until all have ended; shows progress on a terminal, a line for each end elsewhere.
fn wait(
    args: &EnqueueArgs,
    target: &DbTarget,
    mut listener: Listener,
    queued: &enqueue::Queued,
) -> Result<ExitCode> {
    let ids = &queued.builds;
    let mut client = target.connect(APPLICATION_NAME)?;
    let bar = progress_bar(ids.len() as u64);
    let mut known: HashMap<i32, i32> = HashMap::new();
    loop {
        let ended = enqueue::states(&mut client, ids)?;
        for build in ended.iter().filter(|build| build.status.is_some()) {
            let status = build.status.unwrap_or_default();
            if known.insert(build.id, status).is_none() && !args.json {
                let words = BuildStatus::from_code(status).map_or("ended", BuildStatus::text);
                bar.suspend(|| eprintln!("build {} ({}) {words}", build.id, build.job));
                bar.inc(1);
            }
        }
        let gone = ids.len() - ended.len();
        if known.len() + gone >= ids.len() {
            bar.finish_and_clear();
            return Ok(report_ended(args, queued, &ended, gone));
        }
        let until = Instant::now() + LOOK_EVERY;
        while let Some(left) = until.checked_duration_since(Instant::now()) {
            let Some(notice) = listener.next(left)? else {
                break;
            };
            let ours = notice
                .payload
                .split('\t')
                .filter_map(|id| id.parse().ok())
                .any(|id: i32| ids.contains(&id));
            if ours {
                break;
            }
        }
    }
}

fn progress_bar(count: u64) -> indicatif::ProgressBar {
    if !std::io::stderr().is_terminal() {
        return indicatif::ProgressBar::hidden();
    }
    let bar = indicatif::ProgressBar::new(count);
    if let Ok(style) =
        indicatif::ProgressStyle::with_template("{elapsed} [{bar:40}] {pos} of {len} builds ended")
    {
        bar.set_style(style);
    }
    bar.enable_steady_tick(Duration::from_secs(1));
    bar
}

fn report_ended(
    args: &EnqueueArgs,
    queued: &enqueue::Queued,
    ended: &[enqueue::State],
    gone: usize,
) -> ExitCode {
    if args.json {
        let builds: Vec<Value> = ended
            .iter()
            .map(|build| {
                json!({"id": build.id, "job": build.job, "status": build.status,
                    "text": build.status.and_then(BuildStatus::from_code).map(BuildStatus::text),
                    "start": build.start, "stop": build.stop, "cached": build.cached})
            })
            .collect();
        println!(
            "{}",
            json!({"evaluation": queued.evaluation, "builds": builds, "deleted": gone})
        );
    } else {
        let mut rows = vec![["build", "job", "status", "time"]
            .map(str::to_owned)
            .to_vec()];
        for build in ended {
            let status = build
                .status
                .and_then(BuildStatus::from_code)
                .map_or("?", BuildStatus::text);
            let cached = if build.cached { " (cached)" } else { "" };
            let time = table::duration(build.stop.unwrap_or(0) - build.start.unwrap_or(0));
            rows.push(vec![
                build.id.to_string(),
                build.job.clone(),
                format!("{status}{cached}"),
                time,
            ]);
        }
        print!("{}", table::table(&rows));
        if gone > 0 {
            println!("{gone} builds were deleted meanwhile");
        }
    }
    let good = gone == 0 && ended.iter().all(|build| build.status == Some(0));
    if good {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}
