//! `hydrad queue`: what is queued, by system and by jobset, and how long it may take.
//!
//! **The estimate.** For each jobset and system the average machine time of a build is taken from the last days: the time
//! of all steps that were run for its builds, divided by the number of those that were built. Times the number of
//! queued builds that is the work; divided by the slots of the machines of that system, the time in which the queue is
//! worked off. What the average knows nothing of: which dependencies are there already, what runs by now, machines that
//! serve several systems (their slots count for each), and what will still come. A jobset without history is taken as
//! an average one of its system.

use std::collections::BTreeMap;
use std::process::ExitCode;

use anyhow::Result;
use serde_json::{json, Value};

use super::connect::StateArgs;
use super::{system_status, table};
use crate::sys::clock::unix_now;

const APPLICATION_NAME: &str = "hydrad-queue";
const DAY_SECS: i64 = 86_400;

/// Show what is queued, by system and jobset, with expected waiting times
///
/// Counts builds and running steps in the database, and asks the queue runner how many steps could start and which slots
/// there are (it need not answer).
///
/// The expected time is the machine time that the queued builds will need if they are like those of the same jobset and
/// system in the last days, divided by the slots of the machines of that system: the time in which the queue would be
/// worked off, so the most that a new build of average priority waits.
#[derive(clap::Args, Debug)]
#[command(
    after_help = "Examples:\n  hydrad queue\n  hydrad queue --history 30 --json | jq '.systems[] | {system, expectedSecs}'"
)]
pub struct QueueArgs {
    #[command(flatten)]
    pub state: StateArgs,
    /// Take averages of so many days
    #[arg(long, value_name = "DAYS", default_value_t = 7, value_parser = clap::value_parser!(i64).range(1..=3650))]
    pub history: i64,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

/// Queued builds of one jobset and system.
struct Queued {
    jobset_id: i32,
    jobset: String,
    system: String,
    builds: i64,
    priority: i32,
    oldest: i64,
}

#[derive(Default)]
struct System {
    builds: i64,
    running: i64,
    /// As the queue runner says.
    runnable: Option<i64>,
    wait_secs: Option<i64>,
    slots: Option<i64>,
    work_secs: Option<f64>,
}

impl System {
    fn expected_secs(&self) -> Option<i64> {
        let slots = self.slots.filter(|slots| *slots > 0)?;
        Some((self.work_secs? / slots as f64).ceil() as i64)
    }
}

/// Average machine time of a build.
#[derive(Clone, Copy, Default)]
struct Cost {
    builds: i64,
    secs: i64,
}

impl Cost {
    fn add(&mut self, other: Cost) {
        self.builds += other.builds;
        self.secs += other.secs;
    }

    fn average(self) -> Option<f64> {
        (self.builds > 0).then(|| self.secs as f64 / self.builds as f64)
    }
}

#[derive(Default)]
struct Costs {
    by_jobset: BTreeMap<(i32, String), Cost>,
    by_system: BTreeMap<String, Cost>,
    all: Cost,
}

impl Costs {
    fn of(&self, jobset: i32, system: &str) -> Option<f64> {
        self.by_jobset
            .get(&(jobset, system.to_owned()))
            .and_then(|cost| cost.average())
            .or_else(|| self.by_system.get(system).and_then(|cost| cost.average()))
            .or_else(|| self.all.average())
    }
}

/// # Errors
/// When the database cannot be asked.
pub fn run(args: &QueueArgs) -> Result<ExitCode> {
    let target = args.state.target(&args.state.settings()?)?;
    let mut client = target.connect(APPLICATION_NAME)?;
    let answer = system_status::ask(
        system_status::QUEUE_RUNNER,
        &target,
        &mut client,
        APPLICATION_NAME,
    )?;
    let report = answer.report.filter(|_| answer.answered);

    let queued: Vec<Queued> = client
        .query(
            include_str!("../../sql/admin/count_queue_by_jobset.sql"),
            &[],
        )?
        .iter()
        .map(|row| Queued {
            jobset_id: row.get(0),
            jobset: row.get(1),
            system: row.get(2),
            builds: row.get(3),
            priority: row.get(4),
            oldest: i64::from(row.get::<_, i32>(5)),
        })
        .collect();
    let running: Vec<(i32, String, i64)> = client
        .query(
            include_str!("../../sql/admin/count_running_by_jobset.sql"),
            &[],
        )?
        .iter()
        .map(|row| {
            let system: Option<String> = row.get(1);
            (row.get(0), system.unwrap_or_default(), row.get(2))
        })
        .collect();
    let since = unix_now() - args.history * DAY_SECS;
    let rows = client.query(
        include_str!("../../sql/admin/select_build_costs.sql"),
        &[&i32::try_from(since).unwrap_or(i32::MAX)],
    )?;
    let mut costs = Costs::default();
    for row in &rows {
        let (jobset, system): (i32, String) = (row.get(0), row.get(1));
        let cost = Cost {
            builds: row.get(2),
            secs: row.get::<_, i64>(3).max(0),
        };
        costs.by_system.entry(system.clone()).or_default().add(cost);
        costs.all.add(cost);
        costs.by_jobset.insert((jobset, system), cost);
    }

    let systems = systems(&queued, &running, report.as_ref(), &costs);
    if args.json {
        println!(
            "{}",
            as_json(args, answer.answered, &queued, &running, &systems, &costs)
        );
    } else {
        print_queue(args, answer.answered, &queued, &running, &systems, &costs);
    }
    Ok(ExitCode::SUCCESS)
}

fn systems(
    queued: &[Queued],
    running: &[(i32, String, i64)],
    report: Option<&Value>,
    costs: &Costs,
) -> BTreeMap<String, System> {
    let mut systems: BTreeMap<String, System> = BTreeMap::new();
    for queued in queued {
        let system = systems.entry(queued.system.clone()).or_default();
        system.builds += queued.builds;
        let work = costs.of(queued.jobset_id, &queued.system);
        if let Some(work) = work {
            *system.work_secs.get_or_insert(0.0) += work * queued.builds as f64;
        }
    }
    for (_, name, steps) in running {
        systems.entry(name.clone()).or_default().running += steps;
    }
    let types = report.and_then(|report| report["machineTypes"].as_object());
    for (name, kind) in types.into_iter().flatten() {
        let platform = name.split(':').next().unwrap_or(name);
        let runnable = kind["runnable"].as_i64().unwrap_or(0);
        if runnable == 0 && !systems.contains_key(platform) {
            continue;
        }
        let system = systems.entry(platform.to_owned()).or_default();
        *system.runnable.get_or_insert(0) += runnable;
        if let Some(waited) = kind["waitTime"].as_i64() {
            *system.wait_secs.get_or_insert(0) += waited;
        }
    }
    let machines = report.and_then(|report| report["machines"].as_object());
    for (name, machine) in machines.into_iter().flatten() {
        // The same machine as `localhost`.
        if name == "ssh://localhost" || machine["enabled"] == false {
            continue;
        }
        let Some(slots) = machine["maxJobs"].as_i64() else {
            continue;
        };
        for platform in machine["systemTypes"].as_array().into_iter().flatten() {
            if let Some(system) = platform.as_str().and_then(|name| systems.get_mut(name)) {
                *system.slots.get_or_insert(0) += slots;
            }
        }
    }
    systems
}

fn running_of(running: &[(i32, String, i64)], queued: &Queued) -> i64 {
    let own = running
        .iter()
        .filter(|(jobset, system, _)| *jobset == queued.jobset_id && *system == queued.system);
    own.map(|(_, _, steps)| steps).sum()
}

fn as_json(
    args: &QueueArgs,
    answered: bool,
    queued: &[Queued],
    running: &[(i32, String, i64)],
    systems: &BTreeMap<String, System>,
    costs: &Costs,
) -> Value {
    let of_systems: Vec<Value> = systems
        .iter()
        .map(|(name, system)| {
            json!({"system": name, "queued": system.builds, "running": system.running, "runnable": system.runnable,
                "waitTime": system.wait_secs, "slots": system.slots, "workSecs": system.work_secs.map(f64::ceil),
                "expectedSecs": system.expected_secs()})
        })
        .collect();
    let of_jobsets: Vec<Value> = queued
        .iter()
        .map(|queued| {
            let work = costs.of(queued.jobset_id, &queued.system);
            json!({"jobset": queued.jobset, "system": queued.system, "queued": queued.builds,
                "running": running_of(running, queued), "globalPriority": queued.priority, "oldest": queued.oldest,
                "workSecs": work.map(|work| (work * queued.builds as f64).ceil()),
                "expectedSecs": systems.get(&queued.system).and_then(System::expected_secs)})
        })
        .collect();
    json!({"answered": answered, "historyDays": args.history, "historyBuilds": costs.all.builds, "systems": of_systems,
        "jobsets": of_jobsets})
}

fn print_queue(
    args: &QueueArgs,
    answered: bool,
    queued: &[Queued],
    running: &[(i32, String, i64)],
    systems: &BTreeMap<String, System>,
    costs: &Costs,
) {
    if queued.is_empty() {
        println!("nothing is queued");
        return;
    }
    if !answered {
        println!("the queue runner does not answer: is it running? What could start and its slots are not known\n");
    }
    let count = |value: Option<i64>| value.map_or_else(|| "?".to_owned(), |n| n.to_string());
    let time = |value: Option<i64>| value.map_or_else(|| "?".to_owned(), table::duration);
    let mut rows = vec![[
        "system",
        "builds",
        "steps running",
        "runnable",
        "slots",
        "expected",
    ]
    .map(str::to_owned)
    .to_vec()];
    for (name, system) in systems {
        rows.push(vec![
            name.clone(),
            system.builds.to_string(),
            system.running.to_string(),
            count(system.runnable),
            count(system.slots),
            time(system.expected_secs()),
        ]);
    }
    println!("{}", table::table(&rows));
    let mut rows = vec![[
        "jobset",
        "system",
        "builds",
        "steps running",
        "priority",
        "oldest",
        "machine time",
        "done within",
    ]
    .map(str::to_owned)
    .to_vec()];
    for queued in queued {
        let work = costs
            .of(queued.jobset_id, &queued.system)
            .map(|work| (work * queued.builds as f64).ceil() as i64);
        rows.push(vec![
            queued.jobset.clone(),
            queued.system.clone(),
            queued.builds.to_string(),
            running_of(running, queued).to_string(),
            queued.priority.to_string(),
            table::duration((unix_now() - queued.oldest).max(0)),
            time(work),
            time(systems.get(&queued.system).and_then(System::expected_secs)),
        ]);
    }
    println!("{}", table::table(&rows));
    println!(
        "Expected from the machine time of {} builds in the last {} days, by jobset and system (see --help).",
        costs.all.builds, args.history
    );
}
