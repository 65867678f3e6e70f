//! `kill -9` at random instants of a queue of real builds: whatever the instant, after enough restarts every build has
//! ended exactly once and as it should.
//!
//! `HYDRAD_KILLS=200` sets the number of kills (60), `HYDRAD_SEED=N` repeats the instants of an earlier run.

mod common;

use std::collections::HashMap;
use std::time::{Duration, Instant};

use common::{Pg, Site};

/// Builds of one queue; another one is queued whenever the last has ended before its time.
const BUILDS: usize = 300;
/// The longest time between a start and its kill. About a fifth of it goes into starting.
const LIFE_MAX: Duration = Duration::from_millis(900);

/// What a job does, by its number modulo 10.
///
/// Each holds a lock while it runs: somebody else's attempt at the same time is noted in a file.
const JOBS: &str = r#"
{ salt, count, locks }:
let
  names = builtins.genList (n: n) count;
  pad = n: builtins.substring (builtins.stringLength (toString n)) 4 "0000" + toString n;
  mod = a: b: a - b * (a / b);
  kind = n: mod n 10;
  script = ''
    exec 9>>"$locks/$name"
    flock -n 9 || echo "$name" >> "$locks/twice"
    echo "$name begins"
    sleep "$pause"
    if [ "$kind" = 3 ]; then echo "$name fails"; exit 1; fi
    mkdir -p $out/nix-support
    echo "$name" > $out/data
    echo "file data $out/data" > $out/nix-support/hydra-build-products
    if [ "$kind" = 7 ]; then echo mark > $out/nix-support/failed; fi
    echo "$name ends"
  '';
  job = n: derivation {
    name = "${salt}-${pad n}";
    system = builtins.currentSystem;
    builder = "/bin/sh";
    args = [ "-c" script ];
    PATH = "/usr/bin:/bin";
    inherit locks;
    kind = toString (kind n);
    pause = "0.${toString (mod (n * 7) 5)}";
    # 4 needs what fails, 5 needs 4, 6 needs 2 and 1, 8 needs 7 (which succeeds, but is marked), 9 needs 8.
    needs = map job ({ "4" = [ (n - 1) ]; "5" = [ (n - 1) ]; "6" = [ (n - 4) (n - 5) ]; "8" = [ (n - 1) ]; "9" = [ (n - 1) ]; }.${toString (kind n)} or [ ]);
  };
in builtins.listToAttrs (map (n: { name = "${salt}-${pad n}"; value = job n; }) names)
"#;

/// Hydra's status for a job of a kind.
fn expected_status(kind: usize) -> i32 {
    match kind {
        3 => 1,
        4 | 5 => 2,
        7 => 6,
        _ => 0,
    }
}

/// A sequence that a seed repeats.
struct Dice(u64);

impl Dice {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 = self
            .0
            .wrapping_mul(6364136223846793005)
            .wrapping_add(1442695040888963407);
        (self.0 >> 33) % bound
    }
}

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok()?.parse().ok()
}

#[test]
fn killed_at_any_instant_every_build_ends_once_and_as_it_should() {
    let kills = number("HYDRAD_KILLS").unwrap_or(60);
    let seed = number("HYDRAD_SEED").unwrap_or_else(|| u64::from(std::process::id()));
    eprintln!("HYDRAD_KILLS={kills} HYDRAD_SEED={seed}");
    let mut dice = Dice(seed);
    let site = Site::new(Pg::shared());
    site.machines(&Site::localhost(4));
    let locks = site.folder("locks");
    let jobs = site.file("queue.nix", JOBS);
    let mut queues = 0;
    let mut queue_more = || {
        queues += 1;
        site.queue(&format!(
            "import {} {{ salt = \"q{queues}\"; count = {BUILDS}; locks = \"{}\"; }}",
            jobs.display(),
            locks.display()
        ));
    };

    let began = Instant::now();
    let mut unfinished: i64 = 0;
    let (mut adopted, mut aborted, mut refused) = (0, 0, 0);
    for kill in 0..kills {
        if unfinished == 0 {
            queue_more();
        }
        let mut hydrad = site.hydrad(&["run"]).start();
        // The instant is what the test is about.
        std::thread::sleep(Duration::from_millis(
            dice.below(LIFE_MAX.as_millis() as u64),
        ));
        let log = hydrad.log();
        assert!(
            !log.contains("BUG") && !log.contains("given up"),
            "kill {kill}:\n{log}"
        );
        adopted += log.matches("adopting step").count();
        aborted += log.matches("aborting step").count();
        refused += log.matches("another queue runner").count();
        hydrad.kill_9();
        unfinished = site.ask("select count(*) from Builds where finished = 0");
    }
    let killed = began.elapsed();
    let mut hydrad = site.start();
    site.wait_all_finished(&mut hydrad);
    assert!(hydrad.terminate().success());
    eprintln!(
        "{kills} kills in {:.1} s, all {} builds done after {:.1} s; {adopted} steps adopted, {aborted} aborted, \
         {refused} starts refused",
        killed.as_secs_f64(),
        BUILDS * queues,
        began.elapsed().as_secs_f64()
    );

    assert!(aborted > 0, "no kill hit a running step");
    assert!(
        refused * 10 < kills as usize,
        "a dead process holds up the next one's start"
    );
    site.assert_complete();
    let twice = std::fs::read_to_string(locks.join("twice")).unwrap_or_default();
    assert_eq!(
        twice, "",
        "builders that ran beside another of the same derivation"
    );
    let status: HashMap<String, i32> = site
        .db
        .client()
        .query("select job, buildStatus from Builds", &[])
        .unwrap()
        .iter()
        .map(|row| (row.get(0), row.get(1)))
        .collect();
    assert_eq!(status.len(), BUILDS * queues);
    for (job, status) in status {
        let n: usize = job[job.len() - 4..].parse().unwrap();
        assert_eq!(status, expected_status(n % 10), "{job}");
    }
    for (what, sql) in [
        ("built, but recorded as cached", "select id, job from Builds where buildStatus in (0, 6) and isCachedBuild = 1"),
        (
            "succeeded without the product it made",
            "select b.id, b.job from Builds b where buildStatus in (0, 6) and not exists
             (select 1 from BuildProducts p where p.build = b.id and p.path like '%/data' and p.fileSize is not null)",
        ),
        (
            "succeeded without exactly one succeeded step of its own",
            "select b.id, b.job from Builds b where buildStatus in (0, 6) and 1 <>
             (select count(*) from BuildSteps s where s.drvPath = b.drvPath and s.status = 0)",
        ),
        (
            "failed without a failed step",
            "select b.id, b.job from Builds b where buildStatus = 1 and not exists
             (select 1 from BuildSteps s where s.drvPath = b.drvPath and s.status = 1)",
        ),
        (
            "failed by a dependency without a row that says which",
            "select b.id, b.job from Builds b where buildStatus = 2 and not exists
             (select 1 from BuildSteps s where s.build = b.id and s.status in (1, 8) and s.drvPath <> b.drvPath)",
        ),
    ] {
        assert_eq!(site.rows(sql), [""; 0], "{what}");
    }
}
