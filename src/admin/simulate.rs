//! `hydrad simulate`: lets the plan work through made-up queues in virtual time, or (`forecast`) through the real one.
//!
//! With made-up ones it measures what the plan itself costs, and hunts for violations of its properties. Touches no database, no
//! store, no network. The world and its checks are in `plan::simulation`.

use std::io::IsTerminal;
use std::path::PathBuf;
use std::process::ExitCode;
use std::str::FromStr;
use std::time::{Duration, Instant};

use anyhow::{bail, Context};
use clap::Args;
use indicatif::{ProgressBar, ProgressStyle};

use super::connect::StateArgs;
use super::forecast;
use crate::plan::simulation::{run as run_world, Config, Kills, World};

/// Turns between two looks at the progress bar.
const TURNS_PER_LOOK: u64 = 5_000;

/// Rehearse scheduling: on a made-up queue, or on the real one to say when it will be done
///
/// The scheduler that runs in production works through a synthetic queue in virtual time:
/// inspecting derivations, starting steps on machines in Hydra's order, writing records. It prints
/// what the scheduler itself cost, and whether any of its guarantees was violated.
///
/// With --from-database it is the queue of the database as it is now, with the derivations of the
/// local store and with durations of earlier steps of the same name. Nothing is written and no
/// machine is asked. It prints when each evaluation and jobset would be done, and which system type
/// waits most for machines; with --machines or --speed also what that would change. Everything is
/// taken to succeed, and nothing new to be queued.
///
/// Examples:
///
///   hydrad simulate --from-database                         when is the queue done?
///   hydrad simulate --from-database --machines two-more     and with the machines in this file?
///   hydrad simulate --from-database --speed builder1=2      and if builder1 were twice as fast?
///   hydrad simulate --synthetic 1000000x1000x8 --seed 1     a million steps, 1000 machines of 8 slots
///   hydrad simulate --synthetic 500x5x2 --faults 0.3        with failing builds, machines and kills
///   hydrad simulate --seeds 10000                           ten thousand small worlds with faults
///
/// Equal seeds give equal runs. The exit code is 1 if a guarantee was violated; the first violation
/// is printed with its seed.
#[derive(Args, Clone, Debug)]
#[command(verbatim_doc_comment)]
pub struct SimulateArgs {
    /// Work off the real queue in virtual time, and say when it is done
    #[arg(long, conflicts_with_all = ["synthetic", "faults", "seeds", "seed"])]
    pub from_database: bool,

    #[command(flatten)]
    pub state: StateArgs,

    /// Compare with the machines listed in this file instead of the configured ones
    #[arg(long, value_name = "FILE", requires = "from_database")]
    pub machines: Option<PathBuf>,

    /// Compare with builds that go FACTOR times as fast, on one machine or on all; may be given again
    #[arg(long, value_name = "[MACHINE=]FACTOR", requires = "from_database")]
    pub speed: Vec<forecast::Speed>,

    /// Size of the queue: derivations to build, machines, and slots per machine, like 100000x100x4
    #[arg(
        long,
        value_name = "STEPSxMACHINESxSLOTS",
        default_value = "10000x50x4"
    )]
    pub synthetic: Size,

    /// Where everything random comes from; the first one with --seeds
    #[arg(long, value_name = "N", default_value_t = 1)]
    pub seed: u64,

    /// Share of derivations with an unusual fate and chance of mischief, 0 to 1: failures, machines going down,
    /// cancelled, bumped and restarted builds, and the process being killed
    #[arg(long, value_name = "RATE", default_value_t = 0.0)]
    pub faults: f64,

    /// Run this many small worlds instead, each with its own size, faults and kills, and every start compared with
    /// Hydra's order written down plainly
    #[arg(long, value_name = "COUNT", conflicts_with_all = ["synthetic", "faults"])]
    pub seeds: Option<u64>,

    /// Print the result as one line of JSON
    #[arg(long)]
    pub json: bool,
}

/// `STEPSxMACHINESxSLOTS`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Size {
    pub steps: u32,
    pub machines: u32,
    pub slots: u32,
}

impl FromStr for Size {
    type Err = String;

    fn from_str(text: &str) -> Result<Size, String> {
        let numbers: Vec<&str> = text.split('x').collect();
        let [steps, machines, slots] = numbers[..] else {
            return Err(
                "write three numbers like 100000x100x4: steps, machines, slots per machine".into(),
            );
        };
        let number = |name: &str, text: &str, most: u32| match text.parse::<u32>() {
            Ok(number) if (1..=most).contains(&number) => Ok(number),
            _ => Err(format!(
                "{name} must be a number from 1 to {most}, not ‘{text}’"
            )),
        };
        Ok(Size {
            steps: number("STEPS", steps, 20_000_000)?,
            machines: number("MACHINES", machines, 100_000)?,
            slots: number("SLOTS", slots, 10_000)?,
        })
    }
}

/// Runs the simulation and prints its result. Exit code 1 if a guarantee was violated.
pub fn run(args: &SimulateArgs) -> anyhow::Result<ExitCode> {
    if args.from_database {
        return forecast::run(args);
    }
    if args.state.state.is_some() {
        bail!("--state is for --from-database; a made-up queue needs no database");
    }
    if !(0.0..=1.0).contains(&args.faults) {
        bail!("--faults must be a number from 0 to 1, not {}", args.faults);
    }
    match args.seeds {
        Some(count) => run_seeds(args, count),
        None => run_queue(args),
    }
}

/// A bar on a terminal.
pub fn progress(length: u64, unit: &str) -> ProgressBar {
    if !std::io::stderr().is_terminal() {
        return ProgressBar::hidden();
    }
    let template =
        format!("{{bar:40}} {{human_pos}}/{{human_len}} {unit}, {{per_sec}}, {{eta}} left");
    let style =
        ProgressStyle::with_template(&template).unwrap_or_else(|_| ProgressStyle::default_bar());
    ProgressBar::new(length).with_style(style)
}

fn run_queue(args: &SimulateArgs) -> anyhow::Result<ExitCode> {
    let Size {
        steps,
        machines,
        slots,
    } = args.synthetic;
    let small = steps <= 1_000;
    let config = Config {
        seed: args.seed,
        steps,
        machines,
        slots,
        faults: args.faults,
        kills: if args.faults > 0.0 {
            Kills::Chance(0.0005)
        } else {
            Kills::Never
        },
        audit: small,
        check_every: if small { 16 } else { 0 },
    };
    let bar = progress(u64::from(steps), "steps");
    let mut in_plan = Duration::ZERO;
    let (began, began_cpu) = (Instant::now(), thread_cpu());
    let mut world = World::new(config);
    let mut turn =
        |plan: &mut crate::plan::Plan, now, events: &mut Vec<_>, actions: &mut Vec<_>| {
            let before = Instant::now();
            plan.turn(now, events, actions);
            in_plan += before.elapsed();
        };
    while world.advance(TURNS_PER_LOOK, &mut turn) {
        bar.set_position(world.steps_done());
    }
    bar.finish_and_clear();
    let report = world.report();
    let us_per_step = in_plan.as_secs_f64() * 1e6 / f64::from(steps);
    // On a busy host the wall clock also counts those who were let in before us; asking for processor time at
    // every turn would cost as much as the turn, so the plan gets its part of the whole.
    let let_in = thread_cpu().saturating_sub(began_cpu).as_secs_f64()
        / began.elapsed().as_secs_f64().max(1e-9);
    let cpu_us_per_step = us_per_step * let_in.min(1.0);
    let peak_rss_bytes = peak_rss_bytes().context("cannot ask for this process's memory")?;
    if args.json {
        println!(
            "{}",
            serde_json::json!({
                "steps": steps,
                "builds": world.builds(),
                "machines": machines,
                "slots": slots,
                "seed": args.seed,
                "turns": report.turns,
                "starts": report.starts,
                "kills": report.kills,
                "virtual_seconds": report.virtual_secs,
                "us_per_step": us_per_step,
                "cpu_us_per_step": cpu_us_per_step,
                "peak_rss_bytes": peak_rss_bytes,
                "start_order_hash": format!("{:016x}", report.start_order_hash),
                "violations": report.violations.len(),
            })
        );
    } else {
        println!(
            "steps              {steps}, wanted by {} builds",
            world.builds()
        );
        println!("machines           {machines} with {slots} slots each");
        println!("runs started       {}", report.starts);
        println!(
            "virtual time       {} s, process killed {} times",
            report.virtual_secs, report.kills
        );
        println!(
            "cost of the plan   {us_per_step:.2} µs per step ({cpu_us_per_step:.2} of processor time), {} turns",
            report.turns
        );
        println!("peak memory        {:.1} MB", peak_rss_bytes as f64 / 1e6);
        println!("start order        {:016x}", report.start_order_hash);
        println!("violations         {}", report.violations.len());
    }
    Ok(verdict(
        report
            .violations
            .first()
            .map(|text| (args.seed, text.as_str())),
    ))
}

fn run_seeds(args: &SimulateArgs, count: u64) -> anyhow::Result<ExitCode> {
    let bar = progress(count, "worlds");
    let (mut turns, mut starts, mut kills, mut violations) = (0, 0, 0, 0);
    let mut first: Option<(u64, String)> = None;
    for seed in args.seed..args.seed.saturating_add(count) {
        let report = run_world(Config::small(seed));
        turns += report.turns;
        starts += report.starts;
        kills += report.kills;
        violations += report.violations.len();
        if let (None, Some(text)) = (&first, report.violations.into_iter().next()) {
            first = Some((seed, text));
        }
        bar.inc(1);
    }
    bar.finish_and_clear();
    if args.json {
        let json = serde_json::json!({
            "seeds": count,
            "first_seed": args.seed,
            "turns": turns,
            "starts": starts,
            "kills": kills,
            "violations": violations,
        });
        println!("{json}");
    } else {
        println!(
            "{count} worlds from seed {}: {turns} turns, {starts} runs started, {kills} kills",
            args.seed
        );
        println!("violations: {violations}");
    }
    Ok(verdict(
        first.as_ref().map(|(seed, text)| (*seed, text.as_str())),
    ))
}

fn verdict(violation: Option<(u64, &str)>) -> ExitCode {
    match violation {
        None => ExitCode::SUCCESS,
        Some((seed, text)) => {
            eprintln!("seed {seed}: {text}");
            ExitCode::FAILURE
        }
    }
}

/// Processor time of this thread.
fn thread_cpu() -> Duration {
    let mut time = libc::timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    // SAFETY: the pointer is to a live `timespec`. Linux always has this clock; without it the time stays 0.
    unsafe { libc::clock_gettime(libc::CLOCK_THREAD_CPUTIME_ID, &mut time) };
    Duration::new(time.tv_sec as u64, time.tv_nsec as u32)
}

/// The most memory this process ever held.
fn peak_rss_bytes() -> std::io::Result<u64> {
    // SAFETY: `rusage` is plain old data, and the call fills it in.
    let mut usage: libc::rusage = unsafe { std::mem::zeroed() };
    // SAFETY: the pointer is to a live `rusage`.
    if unsafe { libc::getrusage(libc::RUSAGE_SELF, &mut usage) } != 0 {
        return Err(std::io::Error::last_os_error());
    }
    // Linux counts in KiB.
    Ok(usage.ru_maxrss as u64 * 1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes() {
        assert_eq!(
            "1000x10x8".parse(),
            Ok(Size {
                steps: 1000,
                machines: 10,
                slots: 8
            })
        );
        for bad in [
            "",
            "1000",
            "1000x10",
            "0x1x1",
            "1x1x0",
            "1x1x1x1",
            "ax1x1",
            "1x-1x1",
            "99999999999x1x1",
        ] {
            assert!(bad.parse::<Size>().is_err(), "{bad}");
        }
    }
}
