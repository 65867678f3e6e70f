//! A farm under load for a while: many machines of stub builders, users who cancel, bump, restart and delete, an
//! administrator who edits the machines file, connections that break. It must keep moving, and leak nothing.
//!
//! `HYDRAD_SOAK_SECS` is how long (12 by default, `make soak` takes 600), `HYDRAD_SOAK_MACHINES` how many machines
//! (60; `make soak` 500). Figures before, during and after are printed.

mod common;

use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use serde_json::Value;

use common::{eventually, output_of, system, Hydrad, Pg, Site};

fn number_from_env(name: &str, default: usize) -> usize {
    std::env::var(name).map_or(default, |text| {
        text.parse()
            .unwrap_or_else(|_| panic!("{name} must be a number, not {text:?}"))
    })
}

/// Chance that is the same in every run.
struct Dice(u64);

impl Dice {
    fn below(&mut self, n: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 % n.max(1) as u64) as usize
    }

    fn one_of<'a>(&mut self, words: &[&'a str]) -> &'a str {
        words[self.below(words.len())]
    }
}

/// What a leak would show in.
#[derive(Clone, Copy, Debug, Default)]
struct Figures {
    rss_kib: u64,
    threads: u64,
    files: usize,
    children: usize,
    sessions: i64,
    steps_done: i64,
}

impl std::fmt::Display for Figures {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "{:>7.1} MB, {:>4} threads, {:>4} files, {:>4} children, {:>2} sessions, {:>6} steps done",
            self.rss_kib as f64 / 1024.0,
            self.threads,
            self.files,
            self.children,
            self.sessions,
            self.steps_done
        )
    }
}

fn figures(pid: u32, db: &mut postgres::Client) -> Figures {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let field = |name: &str| -> u64 {
        let line = status.lines().find_map(|line| line.strip_prefix(name));
        let value = line.and_then(|line| line.split_whitespace().next());
        value.and_then(|value| value.parse().ok()).unwrap_or(0)
    };
    let files = std::fs::read_dir(format!("/proc/{pid}/fd")).map_or(0, |dir| dir.count());
    let row = db
        .query_one(
            "select (select count(*) from pg_stat_activity
                     where datname = current_database() and application_name = 'hydrad-queue-runner'),
                    (select count(*) from BuildSteps where busy = 0 and machine <> '')",
            &[],
        )
        .expect("ask for sessions and steps");
    Figures {
        rss_kib: field("VmRSS:"),
        threads: field("Threads:"),
        files,
        children: children(pid).len(),
        sessions: row.get(0),
        steps_done: row.get(1),
    }
}

/// The processes that a process has started.
fn children(pid: u32) -> Vec<u32> {
    let mut children = Vec::new();
    for task in std::fs::read_dir(format!("/proc/{pid}/task"))
        .into_iter()
        .flatten()
        .flatten()
    {
        let text = std::fs::read_to_string(task.path().join("children")).unwrap_or_default();
        children.extend(
            text.split_whitespace()
                .filter_map(|pid| pid.parse::<u32>().ok()),
        );
    }
    children
}

/// Private memory of the stubs that serve machines now, KiB: mean and most.
fn stub_memory(pid: u32) -> (u64, u64) {
    let (mut sum, mut most, mut count) = (0, 0, 0);
    for child in children(pid) {
        let name = std::fs::read_link(format!("/proc/{child}/exe")).unwrap_or_default();
        let rollup =
            std::fs::read_to_string(format!("/proc/{child}/smaps_rollup")).unwrap_or_default();
        let own: u64 = rollup
            .lines()
            .filter(|line| line.starts_with("Private_"))
            .filter_map(|line| line.split_whitespace().nth(1)?.parse::<u64>().ok())
            .sum();
        if name.ends_with(Path::new("bin/ssh")) && own > 0 {
            sum += own;
            most = most.max(own);
            count += 1;
        }
    }
    (sum / count.max(1), most)
}

/// A jobset: `jobs` jobs that share a tenth as many libraries, each of which takes some seconds.
fn jobset(round: usize, jobs: usize, secs_most: usize) -> String {
    let libraries = (jobs / 10).max(1);
    format!(
        "let
  mod = a: b: a - (a / b) * b;
  mk = name: attrs: derivation ({{ inherit name; system = \"{}\"; builder = \"/none\"; }} // attrs);
  secs = i: toString (1 + mod (i * 37 + {round} * 11) {secs_most});
  libraries = builtins.genList (i: mk \"lib-{round}-${{toString i}}\" {{ stubSeconds = secs i; }}) {libraries};
  lib = i: builtins.elemAt libraries (mod i {libraries});
in builtins.listToAttrs (builtins.genList (i: {{
  name = \"job-${{toString i}}\";
  value = mk \"job-{round}-${{toString i}}\" {{
    stubSeconds = secs (i * 3);
    stubStatus = if mod i 41 == 7 then \"3\" else \"0\";
    inputs = [ (lib i) (lib (i * 7 + 3)) ];
  }};
}}) {jobs})
",
        system()
    )
}

fn machines(dice: &mut Dice, count: usize, edited: bool) -> String {
    let mut text = String::new();
    for n in 1..=count {
        // Never more than half: such a change would be held back.
        if edited && dice.below(12) == 0 {
            continue;
        }
        let (slots, speed) = if edited {
            (1 + dice.below(2), 1 + dice.below(3))
        } else {
            (1, 1)
        };
        text.push_str(&Site::stub(
            &format!("m{n}"),
            slots as u32,
            speed as u32,
            "-",
        ));
    }
    text
}

/// One thing that somebody does to a farm at work.
fn mischief(site: &Site, hydrad: &Hydrad, dice: &mut Dice, machine_count: usize) {
    let host = format!("m{}", 1 + dice.below(machine_count));
    let sql = match dice.below(12) {
        0 | 1 => {
            "update Builds set finished = 1, buildStatus = 4, isCachedBuild = 0,
                 startTime = extract(epoch from now()), stopTime = extract(epoch from now())
             where id in (select id from Builds where finished = 0 order by random() limit 3)"
        }
        2 => {
            "update Builds set globalPriority = 1 + (select max(globalPriority) from Builds)
             where id in (select id from Builds where finished = 0 order by random() limit 5)"
        }
        3 | 4 => {
            "update Builds set finished = 0, buildStatus = null, startTime = null, stopTime = null, isCachedBuild = null
             where id in (select id from Builds where finished = 1 and buildStatus = 4 order by random() limit 3)"
        }
        5 => "delete from Builds where id in (select id from Builds where finished = 0 order by random() limit 1)",
        6 => {
            "update Jobsets set schedulingShares = 1 + (random() * 200)::int
             where id in (select id from Jobsets order by random() limit 1)"
        }
        7 => {
            "select pg_terminate_backend(pid) from pg_stat_activity
             where datname = current_database() and application_name = 'hydrad-queue-runner' and random() < 0.1"
        }
        8 => return site.machines(&machines(dice, machine_count, true)),
        9 => return hydrad.hang_up(),
        _ => {
            let kind = dice.one_of(&["die", "refuse", "garbage", "half", "kill"]);
            let phase = dice.one_of(&["connect", "handshake", "valid", "build", "infos", "dump"]);
            return site
                .stubs
                .set(&host, &[("fault", &format!("{kind}-in-{phase}@1"))]);
        }
    };
    // A deadlock with the writer may end this side's transaction: it is only somebody's wish.
    let _ = site.db.superuser().batch_execute(sql);
}

/// Wait until nothing runs and nothing is kept any more, and take the figures.
fn at_rest(site: &Site, hydrad: &mut Hydrad, client: &mut postgres::Client) -> Figures {
    let done = "select not exists (select 1 from Builds where finished = 0)";
    let give_up = Instant::now() + Duration::from_secs(600);
    while !site.ask::<bool>(done) {
        assert!(
            Instant::now() < give_up,
            "the queue does not come to an end; {:?} is left\n{}",
            site.rows("select id, job from Builds where finished = 0 limit 5"),
            output_of(&mut site.hydrad(&["status"]).command())
        );
        std::thread::sleep(Duration::from_millis(100));
    }
    let pid = hydrad.pid();
    hydrad.eventually("connections without work are closed", || {
        // The local store's daemon may stay.
        let stubs = children(pid).into_iter().filter(|child| {
            std::fs::read_link(format!("/proc/{child}/exe"))
                .is_ok_and(|exe| exe.ends_with("bin/ssh"))
        });
        (stubs.count() == 0).then_some(())
    });
    // The threads follow their connections.
    let mut last = u64::MAX;
    hydrad.eventually("threads without work have left", || {
        std::thread::sleep(Duration::from_millis(1_500));
        let threads = figures(pid, client).threads;
        (std::mem::replace(&mut last, threads) == threads).then_some(())
    });
    figures(pid, client)
}

#[test]
fn a_busy_farm_with_restless_users_keeps_moving_and_leaks_nothing() {
    let secs = number_from_env("HYDRAD_SOAK_SECS", 12);
    let machine_count = number_from_env("HYDRAD_SOAK_MACHINES", 60);
    let round_jobs = machine_count * 2;
    let secs_most = (secs / 10).clamp(2, 12);
    let mut dice = Dice(0x9e37_79b9_7f4a_7c15);

    let site = Site::new(Pg::shared());
    site.configure("connection_idle = 2\nmax_db_connections = 8\n");
    site.machines(&machines(&mut dice, machine_count, false));
    let mut client = site.db.superuser();
    let mut hydrad = site.start();

    site.queue_in("warm-up", &jobset(0, round_jobs, 1));
    let before = at_rest(&site, &mut hydrad, &mut client);
    println!("before   {before}");

    let stop = Arc::new(AtomicBool::new(false));
    let series: Arc<Mutex<Vec<Figures>>> = Arc::default();
    let sampler = {
        let (stop, series, pid) = (stop.clone(), series.clone(), hydrad.pid());
        let mut client = site.db.superuser();
        std::thread::spawn(move || {
            while !stop.load(Ordering::Relaxed) {
                let now = figures(pid, &mut client);
                series.lock().unwrap().push(now);
                std::thread::sleep(Duration::from_secs(1));
            }
        })
    };

    let until = Instant::now() + Duration::from_secs(secs as u64);
    let (mut round, mut moved, mut stubs) = (0, (Instant::now(), 0), (0, 0));
    while Instant::now() < until {
        let unfinished: i64 = site.ask("select count(*) from Builds where finished = 0");
        if (unfinished as usize) < round_jobs {
            round += 1;
            site.queue_in(
                &format!("round-{round}"),
                &jobset(round, round_jobs, secs_most),
            );
            stubs = stubs.max(stub_memory(hydrad.pid()));
        }
        mischief(&site, &hydrad, &mut dice, machine_count);
        let done: i64 = site.ask("select count(*) from BuildSteps where busy = 0");
        if done > moved.1 || unfinished == 0 {
            moved = (Instant::now(), done);
        }
        assert!(
            moved.0.elapsed() < common::patience(),
            "nothing has moved for {} s with {unfinished} builds unfinished",
            moved.0.elapsed().as_secs()
        );
        std::thread::sleep(Duration::from_millis(100));
    }

    for n in 1..=machine_count {
        site.stubs.set(&format!("m{n}"), &[]);
    }
    site.machines(&machines(&mut dice, machine_count, false));
    hydrad.hang_up();
    let after = at_rest(&site, &mut hydrad, &mut client);
    stop.store(true, Ordering::Relaxed);
    sampler.join().expect("the sampler ends");

    let series = series.lock().unwrap();
    for (at, figures) in series
        .iter()
        .enumerate()
        .step_by((series.len() / 10).max(1))
    {
        println!("{at:>6} s {figures}");
    }
    println!("after    {after}");
    println!(
        "{round} jobsets of {round_jobs} jobs on {machine_count} machines in {secs} s; private memory of a stub: {} KiB \
         in the mean, {} KiB at most",
        stubs.0, stubs.1
    );

    assert!(after.steps_done > before.steps_done);
    assert_eq!(
        site.rows("select build, stepnr from BuildSteps where busy <> 0 or status is null"),
        [""; 0]
    );
    assert_eq!(site.rows("select drv from twice_log"), [""; 0]);
    let status = eventually("a status without running steps", || {
        let mut command = site.hydrad(&["status", "--json"]).command();
        let status: Value = serde_json::from_str(&output_of(&mut command)).ok()?;
        let runner = status["queueRunner"].clone();
        (runner["nrActiveSteps"] == 0 && runner["nrUnwrittenRecords"] == 0).then_some(runner)
    });
    assert_eq!(status["nrUnfinishedSteps"], 0, "{status}");
    for (name, machine) in status["machines"].as_object().expect("machines") {
        assert_eq!(
            machine["currentJobs"], 0,
            "a slot of {name} is not given back"
        );
    }
    let most_sessions = series.iter().map(|figures| figures.sessions).max();
    assert!(most_sessions <= Some(8 + 2), "{most_sessions:?} sessions");
    assert!(
        after.threads <= before.threads + 4,
        "threads: {before}; {after}"
    );
    assert!(after.files <= before.files + 12, "files: {before}; {after}");
    assert!(
        after.children <= before.children + 2,
        "children: {before}; {after}"
    );
    // Memory of the allocator settles within the first third; after that it must not grow with what was done.
    let settled = series[series.len() / 3..].iter().map(|f| f.rss_kib).min();
    let settled = settled.unwrap_or(before.rss_kib);
    assert!(
        after.rss_kib < settled * 3 / 2 + 64 * 1024,
        "memory: {settled} KiB after a third of the time, {after}"
    );
}
