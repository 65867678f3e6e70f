//! `hydrad simulate --from-database`: when the queue as it is now would be done, by the machines there are or by others.
//!
//! Reads the queue, the derivations and how long steps took; writes nothing. What happens in virtual time is decided by
//! the plan itself (`plan::simulation::forecast`).

use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{bail, Context as _, Result};
use serde_json::{json, Value};

use super::simulate::{progress, SimulateArgs};
use super::table;
use crate::config::machines::{MachineLine, MachinesFiles};
use crate::db::history::{self, OpenEvaluation, PastStep};
use crate::db::{leftovers, queue as statements, DbError, PooledConn};
use crate::model::{BuildId, BuildStatus, JobsetId, MachineId, Millis};
use crate::nix::store_path::base_name;
use crate::plan::event::{Event, QueuedBuild, StepFacts};
use crate::plan::simulation::forecast::{Ended, Forecast, Queue};
use crate::queue::observe::{observe, Observer};
use crate::queue::{self, inspect, watch_machines};
use crate::store::nix_conf;
use crate::sys::clock::unix_now;

/// Steps of the past that are read, the newest first.
const PAST_STEPS_MAX: i64 = 300_000;
/// How many of the newest durations of a name count.
const RECENT: usize = 5;
/// A step of which nothing at all is known.
const SECS_UNKNOWN: u32 = 60;
/// A step that is under way for longer than it usually takes is expected to go on for this part of that time.
const OVERDUE_PART: u64 = 10;
/// Turns between two looks at the progress bar.
const TURNS_PER_LOOK: u64 = 500;
/// Rows of the longer tables that a person is shown.
const ROWS_MAX: usize = 30;
const CONNECTION_PATIENCE: Duration = Duration::from_secs(30);

/// `FACTOR`, or `MACHINE=FACTOR`.
#[derive(Clone, PartialEq, Debug)]
pub struct Speed {
    /// `None`: every machine.
    pub machine: Option<String>,
    pub factor: f64,
}

impl FromStr for Speed {
    type Err = String;

    fn from_str(text: &str) -> Result<Speed, String> {
        let (machine, factor) = match text.rsplit_once('=') {
            Some((machine, factor)) => (Some(machine.to_owned()), factor),
            None => (None, text),
        };
        match factor.parse::<f64>() {
            Ok(factor) if factor.is_finite() && (0.001..=1000.0).contains(&factor) => {
                Ok(Speed { machine, factor })
            }
            _ => Err(format!(
                "write FACTOR or MACHINE=FACTOR with a factor from 0.001 to 1000, not ‘{factor}’"
            )),
        }
    }
}

/// How long steps take, from how long they took.
#[derive(Default)]
pub struct Durations {
    by_name: HashMap<String, Recent>,
    /// Names without their version.
    by_stem: HashMap<String, Recent>,
    by_system: HashMap<String, Recent>,
    all: Recent,
}

/// The newest durations of a kind.
#[derive(Clone, Default, Debug)]
struct Recent(Vec<u32>);

impl Recent {
    fn add(&mut self, secs: u32, most: usize) {
        if self.0.len() < most {
            self.0.push(secs);
        }
    }

    fn median(&self) -> Option<u32> {
        let mut sorted = self.0.clone();
        sorted.sort_unstable();
        sorted.get(sorted.len() / 2).copied()
    }
}

/// Where a duration comes from.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Basis {
    Name,
    Stem,
    /// The system type, or everything, or nothing at all.
    Guess,
}

impl Durations {
    /// `steps`: the newest first.
    pub fn learn(steps: &[PastStep]) -> Durations {
        const MANY: usize = 1_001;
        let mut durations = Durations::default();
        for step in steps {
            let name = drv_name(&step.drv);
            let stem = stem(name);
            for (map, key) in [
                (&mut durations.by_name, name),
                (&mut durations.by_stem, stem),
            ] {
                match map.get_mut(key) {
                    Some(recent) => recent.add(step.secs, RECENT),
                    None => {
                        map.insert(key.to_owned(), Recent(vec![step.secs]));
                    }
                }
            }
            let system = durations.by_system.entry(step.system.clone()).or_default();
            system.add(step.secs, MANY);
            durations.all.add(step.secs, MANY);
        }
        durations
    }

    /// Seconds for a derivation of a platform.
    pub fn of(&self, drv: &str, platform: &str) -> (u32, Basis) {
        let name = drv_name(drv);
        let known = |map: &HashMap<String, Recent>, key: &str| map.get(key)?.median();
        if let Some(secs) = known(&self.by_name, name) {
            return (secs, Basis::Name);
        }
        if let Some(secs) = known(&self.by_stem, stem(name)) {
            return (secs, Basis::Stem);
        }
        let guess = known(&self.by_system, platform).or_else(|| self.all.median());
        (guess.unwrap_or(SECS_UNKNOWN), Basis::Guess)
    }
}

/// `hello-2.12` of `/nix/store/HASH-hello-2.12.drv`.
fn drv_name(drv: &str) -> &str {
    let base = base_name(drv);
    let base = base.strip_suffix(".drv").unwrap_or(base);
    base.split_once('-').map_or(base, |(_, name)| name)
}

/// A name without its version, which begins as in Nix at the first dash not followed by a letter.
fn stem(name: &str) -> &str {
    let bytes = name.as_bytes();
    let version = (1..bytes.len().saturating_sub(1))
        .find(|&at| bytes[at] == b'-' && !bytes[at + 1].is_ascii_alphabetic());
    version.map_or(name, |at| &name[..at])
}

/// What is read once, whatever machines are tried.
struct World {
    observer: Observer,
    parsers: rayon::ThreadPool,
    jobset_names: HashMap<JobsetId, String>,
    evaluations: Vec<OpenEvaluation>,
    durations: Durations,
    past_steps: usize,
    /// Seconds that a derivation has been under way.
    under_way: HashMap<String, u64>,
    /// Answers, so that the second scenario does not ask again.
    facts: HashMap<Arc<str>, StepFacts>,
    queue: Queue,
}

/// One answer to "by which machines".
struct Scenario {
    title: String,
    machines: Vec<MachineLine>,
    speeds: Vec<Speed>,
}

struct Outcome {
    scenario: Scenario,
    forecast: Forecast,
    /// Steps by the basis of their duration.
    bases: [u64; 3],
}

/// Runs the forecast and prints it.
///
/// # Errors
/// When the database, the store or a machines file cannot be read.
pub fn run(args: &SimulateArgs) -> Result<ExitCode> {
    let mut world = World::read(args)?;
    let mut scenarios = vec![Scenario {
        title: "now".into(),
        machines: configured_machines()?,
        speeds: Vec::new(),
    }];
    if args.machines.is_some() || !args.speed.is_empty() {
        scenarios.push(Scenario {
            title: "then".into(),
            machines: match &args.machines {
                Some(file) => machines_of(file)?,
                None => scenarios[0].machines.clone(),
            },
            speeds: args.speed.clone(),
        });
    }
    for speed in &args.speed {
        let Some(name) = &speed.machine else { continue };
        let named = |scenario: &Scenario| {
            let mut machines = scenario.machines.iter();
            machines.any(|machine| machine.is_recorded_as(name))
        };
        if !scenarios.last().is_some_and(named) {
            bail!("--speed {name}=...: no machine of this name is listed");
        }
    }
    let outcomes: Vec<Outcome> = scenarios
        .into_iter()
        .map(|scenario| world.play(scenario))
        .collect();
    if args.json {
        println!("{}", world.as_json(&outcomes));
    } else {
        print!("{}", world.as_text(&outcomes));
    }
    Ok(ExitCode::SUCCESS)
}

fn configured_machines() -> Result<Vec<MachineLine>> {
    read_machines(queue::machines_files(nix_conf::local_host()))
}

fn machines_of(file: &Path) -> Result<Vec<MachineLine>> {
    if !file.exists() {
        bail!("--machines {}: there is no such file", file.display());
    }
    let file = file.display().to_string();
    read_machines(MachinesFiles::from_env(
        Some(&file),
        &PathBuf::from(&file),
        nix_conf::local_host(),
    ))
}

fn read_machines(mut files: MachinesFiles) -> Result<Vec<MachineLine>> {
    let read = files.read()?;
    for problem in read.errors.iter().chain(&read.warnings) {
        log::warn!("machines file: {problem}");
    }
    Ok(read.machines)
}

impl World {
    fn read(args: &SimulateArgs) -> Result<World> {
        let settings = args.state.settings()?;
        let target = args.state.target(&settings)?;
        let observer = observe(&settings, &target)?;
        let parsers = queue::parsers()?;
        let context = observer.context.clone();
        let conn = || context.pool.get(CONNECTION_PATIENCE);

        let mut ids: Vec<(BuildId, i32)> = statements::unfinished(&mut *conn()?)?;
        ids.sort_unstable_by_key(|(id, priority)| (std::cmp::Reverse(*priority), *id));
        let mut builds = Vec::with_capacity(ids.len());
        for page in ids.chunks(1_000) {
            let ids: Vec<i32> = page.iter().map(|(id, _)| id.0).collect();
            builds.extend(statements::builds(&mut *conn()?, &ids)?);
        }
        let (jobsets, jobset_names) =
            read_jobsets(&builds, i64::from(context.share_window_secs), conn)?;
        let evaluations = history::open_evaluations(&mut *conn()?)?;
        let past = history::past_steps(&mut *conn()?, PAST_STEPS_MAX)?;
        let now = unix_now();
        let under_way = leftovers::busy_steps(&mut *conn()?)?
            .into_iter()
            .filter(|step| step.start > 0)
            .map(|step| (step.drv, now.saturating_sub(step.start).max(0) as u64))
            .collect();
        Ok(World {
            parsers,
            jobset_names,
            evaluations,
            durations: Durations::learn(&past),
            past_steps: past.len(),
            under_way,
            facts: HashMap::new(),
            queue: Queue {
                jobsets,
                builds,
                machines: Vec::new(),
                settings: queue::plan_settings(&settings),
                begin: Millis::from_secs(now.max(0) as u64),
            },
            observer,
        })
    }

    /// Works the queue off with some machines.
    fn play(&mut self, scenario: Scenario) -> Outcome {
        let machines: Vec<_> = (0..)
            .zip(&scenario.machines)
            .map(|(at, line)| watch_machines::spec(line, MachineId(at)))
            .collect();
        let factors: Vec<f64> = scenario
            .machines
            .iter()
            .map(|line| {
                let of_it = |speed: &&Speed| match &speed.machine {
                    Some(name) => line.is_recorded_as(name),
                    None => true,
                };
                let factors = scenario.speeds.iter().filter(of_it);
                factors.map(|speed| speed.factor).product()
            })
            .collect();
        let mut forecast = Forecast::new(Queue {
            machines,
            ..self.queue.clone()
        });
        let bar = progress(self.queue.builds.len() as u64, "builds");
        let mut bases = [0; 3];
        let (context, parsers) = (&self.observer.context, &self.parsers);
        let (durations, under_way) = (&self.durations, &self.under_way);
        let known = std::cell::RefCell::new(&mut self.facts);
        let mut facts = |questions: &[(crate::plan::event::QuestionId, Arc<str>)]| {
            let mut known = known.borrow_mut();
            let new: Vec<_> = questions
                .iter()
                .filter(|(_, drv)| !known.contains_key(drv))
                .cloned()
                .collect();
            let names: HashMap<_, _> = new.iter().cloned().collect();
            for (question, facts) in inspect::inspect(context, parsers, &new) {
                known.insert(names[&question].clone(), facts);
            }
            let answer = |(question, drv): &(_, Arc<str>)| {
                known.get(drv).map(|facts| (*question, facts.clone()))
            };
            questions.iter().filter_map(answer).collect()
        };
        let mut begun: HashMap<String, ()> = HashMap::new();
        let mut takes = |drv: &str, machine: MachineId| {
            let known = known.borrow();
            let platform = match known.get(drv) {
                Some(StepFacts::Needed(spec)) => &*spec.platform,
                _ => "",
            };
            let (secs, basis) = durations.of(drv, platform);
            bases[basis as usize] += 1;
            let mut ms = u64::from(secs.max(1)) * 1000;
            let factor = factors.get(machine.0 as usize).copied().unwrap_or(1.0);
            ms = ((ms as f64 / factor) as u64).max(1);
            // What is under way has done a part of it.
            if let Some(elapsed) = under_way.get(drv) {
                if begun.insert(drv.to_owned(), ()).is_none() {
                    ms = ms
                        .saturating_sub(elapsed * 1000)
                        .max(ms / OVERDUE_PART)
                        .max(1);
                }
            }
            ms
        };
        while forecast.advance(TURNS_PER_LOOK, &mut facts, &mut takes) {
            bar.set_position(forecast.ended() as u64);
        }
        bar.finish_and_clear();
        Outcome {
            scenario,
            forecast,
            bases,
        }
    }

    fn secs_until(&self, at: Millis) -> i64 {
        (at.since(self.queue.begin) / 1000) as i64
    }

    /// When the last of these builds ends, and how many of them never succeed.
    fn end_of<'a>(
        &self,
        forecast: &Forecast,
        builds: impl Iterator<Item = &'a BuildId>,
    ) -> (Option<i64>, u64) {
        let (mut last, mut never) = (None, 0);
        for build in builds {
            match forecast.builds.get(build) {
                Some(ended) if ended.status == BuildStatus::Succeeded => {
                    last = last.max(Some(self.secs_until(ended.at)));
                }
                _ => never += 1,
            }
        }
        (last, never)
    }

    fn as_json(&self, outcomes: &[Outcome]) -> Value {
        let scenarios: Vec<Value> = outcomes
            .iter()
            .map(|outcome| self.scenario_as_json(outcome))
            .collect();
        json!({
            "time": self.queue.begin.secs(),
            "builds": self.queue.builds.len(),
            "pastSteps": self.past_steps,
            "scenarios": scenarios,
        })
    }

    fn scenario_as_json(&self, outcome: &Outcome) -> Value {
        let forecast = &outcome.forecast;
        let at = |secs: Option<i64>| secs.map(|secs| self.queue.begin.secs() + secs);
        let (all, never) = self.end_of(forecast, self.queue.builds.iter().map(|build| &build.id));
        let evaluations: Vec<Value> = self
            .evaluations
            .iter()
            .map(|evaluation| {
                let (secs, never) = self.end_of(forecast, evaluation.builds.iter());
                json!({
                    "id": evaluation.id, "jobset": evaluation.jobset, "builds": evaluation.builds.len(),
                    "seconds": secs, "at": at(secs), "never": never,
                })
            })
            .collect();
        let jobsets: Vec<Value> = self
            .builds_by_jobset()
            .into_iter()
            .map(|(name, builds)| {
                let (secs, never) = self.end_of(forecast, builds.iter());
                json!({
                    "name": name, "builds": builds.len(), "seconds": secs, "at": at(secs), "never": never,
                })
            })
            .collect();
        let types: Vec<Value> = forecast
            .system_types
            .iter()
            .map(|(name, system_type)| {
                json!({
                    "name": name, "waitedSeconds": system_type.waited_secs.round(),
                    "busySeconds": system_type.busy_secs.round(), "mostWaiting": system_type.waiting_max,
                })
            })
            .collect();
        let machines: Vec<Value> = (0..)
            .zip(&outcome.scenario.machines)
            .map(|(id, line)| {
                let used = forecast
                    .machines
                    .get(&MachineId(id))
                    .cloned()
                    .unwrap_or_default();
                json!({
                    "name": line.name, "slots": line.slots, "steps": used.runs,
                    "busySeconds": used.busy_secs.round(),
                })
            })
            .collect();
        let nevers: Vec<Value> = self
            .nevers(forecast)
            .into_iter()
            .map(|(build, why)| json!({ "build": build.0, "why": why }))
            .collect();
        json!({
            "title": outcome.scenario.title,
            "seconds": all, "at": at(all), "never": never,
            "stepsInspected": forecast.inspected, "stepsBuilt": forecast.started,
            "durations": {
                "byName": outcome.bases[Basis::Name as usize],
                "byNameWithoutVersion": outcome.bases[Basis::Stem as usize],
                "guessed": outcome.bases[Basis::Guess as usize],
            },
            "bottleneck": bottleneck(forecast).map(|(name, _)| name),
            "evaluations": evaluations, "jobsets": jobsets, "systemTypes": types, "machines": machines,
            "neverBuilt": nevers,
        })
    }

    fn builds_by_jobset(&self) -> BTreeMap<&str, Vec<BuildId>> {
        let mut builds: BTreeMap<&str, Vec<BuildId>> = BTreeMap::new();
        for build in &self.queue.builds {
            let name = self.jobset_names.get(&build.jobset);
            let name = name.map_or("?", String::as_str);
            builds.entry(name).or_default().push(build.id);
        }
        builds
    }

    /// Builds that do not succeed, and why.
    fn nevers(&self, forecast: &Forecast) -> Vec<(BuildId, String)> {
        let why = |build: &QueuedBuild| match forecast.builds.get(&build.id) {
            Some(Ended {
                status: BuildStatus::Succeeded,
                ..
            }) => None,
            Some(ended) if ended.cached => Some("it or something it needs failed before".into()),
            Some(ended) => Some(ended.status.text().to_owned()),
            None => Some(
                forecast
                    .why(build.id)
                    .unwrap_or_else(|| "it is not known".into()),
            ),
        };
        self.queue
            .builds
            .iter()
            .filter_map(|build| Some((build.id, why(build)?)))
            .collect()
    }

    fn as_text(&self, outcomes: &[Outcome]) -> String {
        let mut text = String::new();
        let Some(first) = outcomes.first() else {
            return text;
        };
        text += &format!(
            "{} builds are queued; {} steps have to be built of {} looked at. Durations from {} earlier steps: {} by name, \
             {} by name without version, {} guessed.\n",
            self.queue.builds.len(),
            first.forecast.started,
            first.forecast.inspected,
            self.past_steps,
            first.bases[Basis::Name as usize],
            first.bases[Basis::Stem as usize],
            first.bases[Basis::Guess as usize],
        );
        for outcome in outcomes {
            let slots: u32 = outcome
                .scenario
                .machines
                .iter()
                .map(|line| line.slots)
                .sum();
            let machines = outcome.scenario.machines.len();
            let (all, _) = self.end_of(
                &outcome.forecast,
                self.queue.builds.iter().map(|build| &build.id),
            );
            let done = all.map_or("nothing is built".to_owned(), |secs| {
                format!("all done in {}", table::duration(secs))
            });
            let title = &outcome.scenario.title;
            text += &format!("{title}: {machines} machines with {slots} slots: {done}\n");
        }

        let mut heading: Vec<String> = ["EVALUATION", "JOBSET", "BUILDS"]
            .map(String::from)
            .to_vec();
        heading.extend(
            outcomes
                .iter()
                .map(|outcome| format!("DONE IN ({})", outcome.scenario.title)),
        );
        let times = |builds: &[BuildId]| -> Vec<String> {
            let time = |outcome: &Outcome| {
                let (secs, never) = self.end_of(&outcome.forecast, builds.iter());
                match (secs, never) {
                    (None, _) => "never".to_owned(),
                    (Some(secs), 0) => table::duration(secs),
                    (Some(secs), never) => {
                        format!("{}, {never} never", table::duration(secs))
                    }
                }
            };
            outcomes.iter().map(time).collect()
        };
        if !self.evaluations.is_empty() {
            let mut rows = vec![heading];
            // The newest ones are of most interest.
            for evaluation in self.evaluations.iter().rev().take(ROWS_MAX) {
                let mut row = vec![
                    evaluation.id.to_string(),
                    evaluation.jobset.clone(),
                    evaluation.builds.len().to_string(),
                ];
                row.extend(times(&evaluation.builds));
                rows.push(row);
            }
            text += &format!("\n{}", table::table(&rows));
            text += &left_out(self.evaluations.len());
        }
        let mut heading: Vec<String> = ["JOBSET", "BUILDS"].map(String::from).to_vec();
        heading.extend(
            outcomes
                .iter()
                .map(|outcome| format!("DONE IN ({})", outcome.scenario.title)),
        );
        let mut rows = vec![heading];
        let jobsets = self.builds_by_jobset();
        for (name, builds) in jobsets.iter().take(ROWS_MAX) {
            let mut row = vec![(*name).to_owned(), builds.len().to_string()];
            row.extend(times(builds));
            rows.push(row);
        }
        text += &format!("\n{}", table::table(&rows));
        text += &left_out(jobsets.len());

        for outcome in outcomes {
            text += &self.bottleneck_text(outcome);
        }
        let mut whys: BTreeMap<String, Vec<BuildId>> = BTreeMap::new();
        if let Some(outcome) = outcomes.last() {
            for (build, why) in self.nevers(&outcome.forecast) {
                whys.entry(why).or_default().push(build);
            }
        }
        for (why, builds) in whys {
            text += &format!(
                "\nnever ({}): {} builds, for instance {}: {why}\n",
                outcomes
                    .last()
                    .map_or("", |outcome| &outcome.scenario.title),
                builds.len(),
                builds[0]
            );
        }
        text
    }

    fn bottleneck_text(&self, outcome: &Outcome) -> String {
        let forecast = &outcome.forecast;
        let mut types: Vec<_> = forecast.system_types.iter().collect();
        types.sort_by(|(_, a), (_, b)| b.waited_secs.total_cmp(&a.waited_secs));
        let mut rows = vec![
            ["SYSTEM TYPE", "BUSY", "WAITED FOR MACHINES", "MOST WAITING"]
                .map(String::from)
                .to_vec(),
        ];
        for (name, system_type) in types.iter().take(ROWS_MAX) {
            rows.push(vec![
                name.to_string(),
                table::duration(system_type.busy_secs as i64),
                table::duration(system_type.waited_secs as i64),
                system_type.waiting_max.to_string(),
            ]);
        }
        let verdict = match bottleneck(forecast) {
            Some((name, waited)) => format!(
                "bottleneck ({}): {name}, whose steps waited {} for a machine, taken together",
                outcome.scenario.title,
                table::duration(waited as i64)
            ),
            None => format!(
                "bottleneck ({}): none, no step waited for a machine",
                outcome.scenario.title
            ),
        };
        format!("\n{verdict}\n{}", table::table(&rows))
    }
}

/// The system type that waited most for machines, if one did.
fn bottleneck(forecast: &Forecast) -> Option<(&str, f64)> {
    forecast
        .system_types
        .iter()
        .map(|(name, system_type)| (&**name, system_type.waited_secs))
        .filter(|(_, waited)| *waited >= 1.0)
        .max_by(|(_, a), (_, b)| a.total_cmp(b))
}

fn left_out(rows: usize) -> String {
    match rows.saturating_sub(ROWS_MAX) {
        0 => String::new(),
        more => format!("... and {more} more, all of them with --json\n"),
    }
}

type JobsetEvents = (Vec<Event>, HashMap<JobsetId, String>);

fn read_jobsets(
    builds: &[QueuedBuild],
    window_secs: i64,
    conn: impl Fn() -> Result<PooledConn, DbError>,
) -> Result<JobsetEvents> {
    let (mut events, mut names) = (Vec::new(), HashMap::new());
    for build in builds {
        if names.contains_key(&build.jobset) {
            continue;
        }
        let since = unix_now() - window_secs;
        let jobset = statements::jobset(&mut *conn()?, build.jobset, since)?
            .with_context(|| format!("the jobset of build {} was deleted; try again", build.id))?;
        names.insert(build.jobset, jobset.name.clone());
        events.push(Event::Jobset {
            id: build.jobset,
            name: jobset.name.into(),
            shares: jobset.shares,
            history: jobset.history,
        });
    }
    Ok((events, names))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn step(name: &str, system: &str, secs: u32) -> PastStep {
        PastStep {
            drv: format!("/nix/store/aabbccddaabbccddaabbccddaabbccdd-{name}.drv"),
            system: system.into(),
            secs,
        }
    }

    #[test]
    fn a_duration_is_that_of_the_name_or_of_what_is_most_alike() {
        let durations = Durations::learn(&[
            step("hello-2.12", "x86_64-linux", 10),
            step("hello-2.12", "x86_64-linux", 30),
            step("hello-2.12", "x86_64-linux", 20),
            step("firefox-unwrapped-115.0", "x86_64-linux", 4_000),
            step("kernel", "aarch64-linux", 700),
        ]);
        let drv = |name: &str| step(name, "", 0).drv;
        for (name, system, expected) in [
            ("hello-2.12", "x86_64-linux", (20, Basis::Name)),
            ("hello-2.13", "x86_64-linux", (20, Basis::Stem)),
            (
                "firefox-unwrapped-116.0.1",
                "x86_64-linux",
                (4_000, Basis::Stem),
            ),
            ("something", "aarch64-linux", (700, Basis::Guess)),
            ("something", "riscv64-linux", (30, Basis::Guess)),
        ] {
            assert_eq!(durations.of(&drv(name), system), expected, "{name}");
        }
        assert_eq!(
            Durations::default().of(&drv("x"), "y"),
            (SECS_UNKNOWN, Basis::Guess)
        );
    }

    #[test]
    fn speeds() {
        assert_eq!(
            "2".parse(),
            Ok(Speed {
                machine: None,
                factor: 2.0
            })
        );
        assert_eq!(
            "ssh://a?x=1=0.5".parse(),
            Ok(Speed {
                machine: Some("ssh://a?x=1".into()),
                factor: 0.5
            })
        );
        for bad in ["", "0", "-1", "m=", "m=x", "NaN", "inf", "1e9"] {
            assert!(bad.parse::<Speed>().is_err(), "{bad}");
        }
    }
}
