//! The evaluator's service on a real PostgreSQL: when what is evaluated, and what becomes of it. What an evaluation does is not
//! the point here, so most tests have a script in its place.

mod common;

use std::collections::{BTreeMap, BTreeSet};
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;

use common::{
    eventually, free_port, output_of, Db, Hydrad, HydradBuilder, Pg, RunAs, Site, TestDir,
};
use postgres::Client;
use serde_json::Value;

/// What is called in the place of `hydrad eval-jobset`. It notes its start with its process's number; then it does what the file
/// `do-JOBSET` says, if there is one.
const SCRIPT: &str = r#"#!/bin/sh
cd "$(dirname "$0")"
echo "$1:$2 $$" >> starts
if [ -e "do-$2" ]; then . "./do-$2"; fi
"#;

/// Waits until the file `go-JOBSET` is there.
const WAIT: &str = r#"while [ ! -e "go-$2" ]; do sleep 0.02; done"#;

struct Place {
    db: Db,
    dir: TestDir,
}

impl Place {
    fn new(conf: &str) -> Place {
        let db = Pg::shared().db();
        db.client()
            .batch_execute(
                "insert into Users (userName, emailAddress, password) values ('u', '', '!');
                 insert into Projects (name, displayName, owner) values ('p', 'P', 'u');
                 insert into Projects (name, displayName, owner, enabled) values ('off', 'Off', 'u', 0)",
            )
            .expect("projects");
        let dir = TestDir::new(RunAs::Unprivileged);
        let place = Place { db, dir };
        let script = place.file("evaluate", SCRIPT);
        std::fs::set_permissions(&script, std::fs::Permissions::from_mode(0o755)).expect("chmod");
        place.configure(conf);
        place
    }

    fn configure(&self, conf: &str) {
        let script = self.dir.join("evaluate");
        let always = "queue_poll_interval = 0\nmin_free_space = 0\n";
        let address = match conf.contains("evaluator_address") {
            true => "",
            false => "evaluator_address = none\n",
        };
        self.file(
            "hydra.conf",
            &format!(
                "{always}{address}eval_jobset_program = {}\n{conf}",
                script.display()
            ),
        );
    }

    fn file(&self, name: &str, text: &str) -> PathBuf {
        self.dir.file(name, text, RunAs::Unprivileged)
    }

    fn client(&self) -> Client {
        self.db.client()
    }

    /// A jobset with these columns beside.
    fn jobset(&self, project: &str, name: &str, enabled: i32, check_interval: i32) {
        let sql = "insert into Jobsets (name, project, emailOverride, nixExprInput, nixExprPath, enabled, checkInterval)
                   values ($2, $1, '', 'i', 'f', $3, $4)";
        self.client()
            .execute(sql, &[&project, &name, &enabled, &check_interval])
            .expect("a jobset");
    }

    fn sql(&self, sql: &str) {
        self.client().batch_execute(sql).expect(sql);
    }

    fn hydrad(&self, args: &[&str]) -> HydradBuilder {
        Hydrad::run(args)
            .db(&self.db)
            .env("HYDRA_DATA", self.dir.path().display().to_string())
            .env(
                "HYDRA_CONFIG",
                self.dir.join("hydra.conf").display().to_string(),
            )
    }

    fn evaluator(&self) -> Hydrad {
        let mut hydrad = self.hydrad(&["evaluator"]).start();
        hydrad.wait_log("evaluator: active");
        hydrad
    }

    /// The starts so far: the jobset and the script's process, in their order.
    fn starts(&self) -> Vec<(String, u32)> {
        let text = std::fs::read_to_string(self.dir.join("starts")).unwrap_or_default();
        let start = |line: &str| {
            let (name, pid) = line.split_once(' ')?;
            Some((name.to_owned(), pid.parse().ok()?))
        };
        text.lines().filter_map(start).collect()
    }

    /// Waits until a jobset has been started so often; the last one's process.
    fn wait_started(&self, hydrad: &mut Hydrad, name: &str, times: usize) -> u32 {
        hydrad.eventually(&format!("{name} is started {times} times"), || {
            let starts = self.starts();
            let of = starts.iter().filter(|(started, _)| started == name);
            let pids: Vec<u32> = of.map(|(_, pid)| *pid).collect();
            assert!(pids.len() <= times, "{starts:?}");
            (pids.len() == times).then(|| pids[times - 1])
        })
    }

    /// Waits until nothing is being evaluated, as the rows have it.
    fn wait_idle(&self, hydrad: &mut Hydrad) {
        hydrad.wait_sql(
            &self.db,
            "select count(*) = 0 from Jobsets where startTime is not null",
        );
    }

    /// Waits until a query's only column of type text is this.
    fn wait_text(&self, hydrad: &mut Hydrad, sql: &str, wanted: impl Fn(&str) -> bool) -> String {
        let mut client = self.client();
        hydrad.eventually(sql, || {
            let text: Option<String> = client.query_one(sql, &[]).expect(sql).get(0);
            text.filter(|text| wanted(text))
        })
    }

    fn status(&self) -> Value {
        let mut command = self.hydrad(&["status", "--json"]).command();
        let output = command.output().expect("hydrad status");
        let text = String::from_utf8_lossy(&output.stdout);
        let status: Value = serde_json::from_str(&text).expect("JSON");
        assert_eq!(status["evaluator"]["answered"], true, "{status}");
        status["evaluator"]["report"].clone()
    }

    fn explain(&self, jobset: &str) -> String {
        output_of(&mut self.hydrad(&["explain", jobset]).command())
    }
}

fn lives(pid: u32) -> bool {
    hydrad::sys::process::is_alive(pid)
}

/// Nobody polls here: whatever begins does so because of a change to a row alone.
#[test]
fn what_is_due_is_evaluated_and_a_changed_row_is_heard_of() {
    let place = Place::new("");
    place.jobset("p", "regular", 1, 300);
    place.jobset("p", "manual", 1, 0);
    place.jobset("p", "disabled", 0, 300);
    place.jobset("off", "s", 1, 300);
    place.jobset("p", "checked", 1, 300);
    place.sql(
        "update Jobsets set lastCheckedTime = extract(epoch from now()) where name = 'checked'",
    );
    place.file("do-manual", WAIT);
    let mut hydrad = place.evaluator();
    place.wait_started(&mut hydrad, "p:regular", 1);
    place.wait_idle(&mut hydrad);

    place.sql("update Jobsets set triggerTime = extract(epoch from now()) where name = 'manual'");
    place.wait_started(&mut hydrad, "p:manual", 1);
    hydrad.wait_sql(
        &place.db,
        "select startTime is not null and triggerTime < startTime from Jobsets where name = 'manual'",
    );
    place.file("go-manual", "");
    place.wait_idle(&mut hydrad);
    hydrad.wait_sql(
        &place.db,
        "select triggerTime is null and errorMsg is null from Jobsets where name = 'manual'",
    );

    place.jobset("p", "new", 2, 300);
    place.wait_started(&mut hydrad, "p:new", 1);
    place.sql("update Jobsets set enabled = 1 where name = 'disabled'");
    place.wait_started(&mut hydrad, "p:disabled", 1);
    place.sql("update Jobsets set checkInterval = 1, lastCheckedTime = 100 where name = 'checked'");
    place.wait_started(&mut hydrad, "p:checked", 1);
    place.wait_idle(&mut hydrad);

    assert_eq!(place.starts().len(), 5, "{:?}", place.starts());
    let log = hydrad.log();
    assert!(
        log.contains("starting evaluation of jobset ‘p:new (jobset#6)’ (last checked never)"),
        "{log}"
    );
    let told = place.explain("p:manual");
    assert!(told.contains("when it is triggered"), "{told}");
    place.sql("update Jobsets set enabled = 0 where name = 'new'");
    let told = place.explain("p:new");
    assert!(
        told.contains("it is disabled: it is not evaluated"),
        "{told}"
    );
    assert!(hydrad.terminate().success());
    assert!(hydrad.log().contains("evaluator: stopped"));
}

#[test]
fn a_trigger_that_comes_during_an_evaluation_is_served_after_it() {
    let place = Place::new("");
    place.jobset("p", "s", 1, 0);
    place.file("do-s", WAIT);
    let mut hydrad = place.evaluator();
    let trigger = "update Jobsets set triggerTime = extract(epoch from now())";
    place.sql(trigger);
    place.wait_started(&mut hydrad, "p:s", 1);
    // Within the same second, several times; and one whose clock is late.
    for _ in 0..5 {
        place.sql(trigger);
    }
    place.sql("update Jobsets set triggerTime = startTime - 30");
    place.file("go-s", "");
    place.wait_started(&mut hydrad, "p:s", 2);
    place.wait_idle(&mut hydrad);
    hydrad.wait_sql(&place.db, "select triggerTime is null from Jobsets");
    // One whose clock is early does not make it go round and round.
    place.sql("update Jobsets set triggerTime = extract(epoch from now()) + 300");
    place.wait_started(&mut hydrad, "p:s", 3);
    place.wait_idle(&mut hydrad);
    hydrad.wait_sql(&place.db, "select triggerTime is null from Jobsets");
    assert_eq!(place.starts().len(), 3);
}

#[test]
fn limits_hold_and_whoever_waits_is_told_why() {
    let place = Place::new("max_concurrent_evals = 2\n");
    for n in 1..=4 {
        let name = format!("s{n}");
        place.jobset("p", &name, 1, 300);
        place.sql(&format!(
            "update Jobsets set lastCheckedTime = {} where name = '{name}'",
            1_000 - n
        ));
        // The first of each pair is the one not checked for the longest time.
        place.file(&format!("do-{name}"), WAIT);
    }
    let mut hydrad = place.evaluator();
    place.wait_started(&mut hydrad, "p:s4", 1);
    place.wait_started(&mut hydrad, "p:s3", 1);
    let report = place.status();
    let states: BTreeMap<&str, &str> = report["jobsets"]
        .as_array()
        .expect("jobsets")
        .iter()
        .map(|told| {
            let word = |key: &str| told[key].as_str().expect(key);
            (word("jobset"), word("state"))
        })
        .collect();
    let expected = [
        ("s1", "due"),
        ("s2", "due"),
        ("s3", "evaluating"),
        ("s4", "evaluating"),
    ];
    assert_eq!(states, BTreeMap::from(expected));
    let told = place.explain("p:s1");
    let why =
        "it is due and waits for its turn: 2 evaluations are under way (max_concurrent_evals = 2)";
    assert!(told.contains(why), "{told}");

    // More may run, but not more than memory allows.
    place.configure("max_concurrent_evals = 9\nevaluator_memory_budget = 13G\n");
    hydrad.hang_up();
    place.wait_started(&mut hydrad, "p:s2", 1);
    let told = place.explain("p:s1");
    assert!(
        told.contains("it is due and waits for memory: 3 evaluations"),
        "{told}"
    );
    assert_eq!(place.starts().len(), 3);
    for n in 1..=4 {
        place.file(&format!("go-s{n}"), "");
    }
    place.wait_started(&mut hydrad, "p:s1", 1);
    place.wait_idle(&mut hydrad);
}

#[test]
fn every_end_is_recorded_and_says_what_happened() {
    let place = Place::new("evaluator_timeout = 1\n");
    for name in ["killed", "crashed", "failed", "late", "missing"] {
        place.jobset("p", name, 1, 300);
    }
    place.file("do-killed", "kill -9 $$");
    place.file(
        "do-crashed",
        "echo 'a last word' >&2; printf 'and \\033[31mone\\033[0m more\\n'; exit 7",
    );
    place.file("do-failed", "exit 1");
    // What it has started goes with it, also if it has a process group of its own and does not listen.
    place.file(
        "do-late",
        "trap '' TERM; perl -e 'setpgrp; $SIG{TERM} = q(IGNORE); sleep 1000' & echo $! > late-child; \
         while :; do sleep 1000; done",
    );
    place.sql("update Jobsets set errorMsg = 'before', fetchErrorMsg = 'before'");
    let listener = place.db.listen(&["eval_failed", "eval_error_changed"]);
    let mut hydrad = place.evaluator();
    let of = |name: &str| format!("select errorMsg from Jobsets where name = '{name}'");
    let begins = |words: &'static str| move |text: &str| text.starts_with(words);
    let text = place.wait_text(
        &mut hydrad,
        &of("killed"),
        begins("evaluation failed due to signal 9 (Killed)\n\n"),
    );
    assert!(text.contains("Its largest process had used "), "{text}");
    let text = place.wait_text(
        &mut hydrad,
        &of("crashed"),
        begins("evaluation failed with exit code 7"),
    );
    assert!(text.ends_with("a last word\nand one more"), "{text}");
    let text = place.wait_text(
        &mut hydrad,
        &of("late"),
        begins("evaluation failed: it was ended after "),
    );
    assert!(text.contains("evaluator_timeout"), "{text}");
    let late = std::fs::read_to_string(place.dir.join("late-child")).expect("it was started");
    let late: u32 = late.trim().parse().expect("a number");
    eventually("its child is gone", || (!lives(late)).then_some(()));
    place.wait_idle(&mut hydrad);
    hydrad.wait_sql(
        &place.db,
        "select bool_and(fetchErrorMsg is null and errorTime = lastCheckedTime and lastCheckedTime > 1000000)
         from Jobsets where name in ('killed', 'crashed', 'late')",
    );
    for channel in ["eval_failed", "eval_error_changed"] {
        listener.wait(channel, |events| {
            let of = events.iter().filter(|event| event.channel == channel);
            let jobsets: BTreeSet<&str> = of.filter_map(|e| e.payload.split('\t').nth(1)).collect();
            (jobsets == BTreeSet::from(["1", "2", "4"])).then_some(())
        });
    }
    // It says so itself.
    hydrad.wait_sql(
        &place.db,
        "select errorMsg = 'before' and fetchErrorMsg = 'before' and lastCheckedTime is null from Jobsets where name = 'failed'",
    );
    let log = hydrad.log();
    assert!(log.contains("p:crashed: and one more"), "{log}");
    let told = place.explain("p:crashed");
    assert!(told.contains("it is checked again in"), "{told}");
    assert!(
        told.contains("  evaluation failed with exit code 7"),
        "{told}"
    );
    let report = place.status();
    assert_eq!(report["ended"]["died"], 2, "{report}");
    assert_eq!(report["ended"]["time_over"], 1, "{report}");

    // A program that is not there.
    std::fs::remove_file(place.dir.join("evaluate")).expect("removed");
    place.sql("update Jobsets set triggerTime = 1 where name = 'missing'");
    let text = place.wait_text(
        &mut hydrad,
        &of("missing"),
        begins("evaluation failed: cannot start "),
    );
    assert!(
        text.ends_with("/evaluate: No such file or directory"),
        "{text}"
    );
}

#[test]
fn a_deleted_or_disabled_jobset_is_not_evaluated_on_and_a_one_shot_that_is_done_is() {
    let place = Place::new("");
    for (name, enabled) in [("deleted", 1), ("disabled", 1), ("shot", 2)] {
        place.jobset("p", name, enabled, 300);
        place.file(&format!("do-{name}"), &format!("{WAIT}\n: > done-$2"));
    }
    let mut hydrad = place.evaluator();
    let [deleted, disabled, shot] =
        ["p:deleted", "p:disabled", "p:shot"].map(|name| place.wait_started(&mut hydrad, name, 1));
    // As its own last transaction does.
    place.sql("update Jobsets set enabled = 0 where name = 'shot'");
    place.sql("update Jobsets set enabled = 0 where name = 'disabled'");
    place.sql("delete from Jobsets where name = 'deleted'");
    hydrad.wait_log("p:deleted: its evaluation is ended: the jobset was deleted");
    hydrad.wait_log("p:disabled: its evaluation is ended: the jobset or its project was disabled");
    eventually("both are gone", || {
        (!lives(deleted) && !lives(disabled)).then_some(())
    });
    hydrad.wait_sql(
        &place.db,
        "select startTime is null and errorMsg is null from Jobsets where name = 'disabled'",
    );
    assert!(lives(shot));
    place.file("go-shot", "");
    place.wait_idle(&mut hydrad);
    assert!(place.dir.join("done-shot").exists());
    assert!(!place.dir.join("done-disabled").exists());
    // Slots and service are as before.
    place.jobset("p", "next", 1, 300);
    place.wait_started(&mut hydrad, "p:next", 1);
    assert_eq!(place.starts().len(), 4);
}

#[test]
fn one_at_a_time_waits_for_its_builds_and_hears_of_their_end() {
    let place = Place::new("");
    place.jobset("p", "s", 3, 300);
    place.sql(
        "insert into Builds (id, finished, timestamp, jobset_id, job, drvPath, system)
             select n, 0, 1, 1, 'j' || n, '/nix/store/x.drv', 'x' from generate_series(1, 2) n;
         insert into JobsetEvals (id, jobset_id, timestamp, checkoutTime, evalTime, hasNewBuilds, hash)
             values (1, 1, 1, 0, 0, 1, 'h'), (2, 1, 2, 0, 0, 0, 'h');
         insert into JobsetEvalMembers (eval, build, isNew) values (1, 1, 1), (1, 2, 1)",
    );
    let mut hydrad = place.evaluator();
    hydrad.eventually("it waits", || {
        let told = place.explain("p:s");
        told.contains("one at a time, and 2 builds of its newest evaluation are unfinished")
            .then_some(())
    });
    let finish = |build: i32| {
        place.sql(&format!(
            "begin; update Builds set finished = 1, buildStatus = 0, startTime = 1, stopTime = 2 where id = {build};
             select pg_notify('build_finished', '{build}'); commit"
        ));
    };
    finish(1);
    hydrad.eventually("it waits for the other", || {
        let told = place.explain("p:s");
        told.contains("and 1 builds of its newest").then_some(())
    });
    assert_eq!(place.starts().len(), 0);
    finish(2);
    place.wait_started(&mut hydrad, "p:s", 1);
    place.wait_idle(&mut hydrad);
}

#[test]
fn another_evaluator_takes_over_from_one_that_was_killed_and_nothing_is_lost() {
    let place = Place::new("");
    place.jobset("p", "s", 1, 0);
    place.file("do-s", WAIT);
    let mut first = place.evaluator();
    place.sql("update Jobsets set triggerTime = extract(epoch from now())");
    let child = place.wait_started(&mut first, "p:s", 1);
    let mut second = place.hydrad(&["evaluator"]).start();
    second.wait_log("evaluator: standing by while another one is at work: hydrad-evaluator");
    let unlock = || {
        let mut command = place.hydrad(&["evaluator", "--unlock"]).command();
        command.output().expect("--unlock").status.code()
    };
    assert_eq!(unlock(), Some(1), "an evaluator is at work");
    first.kill_9();
    eventually("its child goes with it", || (!lives(child)).then_some(()));
    second.wait_log("evaluator: active");
    place.wait_started(&mut second, "p:s", 2);
    place.file("go-s", "");
    place.wait_idle(&mut second);
    second.wait_sql(&place.db, "select triggerTime is null from Jobsets");

    // Its sessions gone: it goes on, and so does what it evaluates.
    std::fs::remove_file(place.dir.join("go-s")).expect("removed");
    place.sql("update Jobsets set triggerTime = extract(epoch from now())");
    let child = place.wait_started(&mut second, "p:s", 3);
    place.sql(
        "select pg_terminate_backend(pid) from pg_stat_activity
         where datname = current_database() and application_name = 'hydrad-evaluator'",
    );
    second.wait_log_times("evaluator: active", 2);
    assert!(lives(child));
    place.sql("update Jobsets set triggerTime = extract(epoch from now()) + 1");
    place.file("go-s", "");
    place.wait_started(&mut second, "p:s", 4);
    place.wait_idle(&mut second);

    second.kill_9();
    place.sql("update Jobsets set startTime = 1");
    eventually("its sessions are gone", || {
        (unlock() == Some(0)).then_some(())
    });
    let sql = "select startTime from Jobsets";
    let started: Option<i32> = place.client().query_one(sql, &[]).expect(sql).get(0);
    assert_eq!(started, None);
}

#[test]
fn a_stop_ends_evaluations_and_the_next_start_makes_them_again() {
    let place = Place::new("stop_timeout = 1\n");
    place.jobset("p", "s", 1, 0);
    // It does not listen.
    place.file("do-s", &format!("trap '' TERM\n{WAIT}"));
    let mut hydrad = place.evaluator();
    place.sql("update Jobsets set triggerTime = extract(epoch from now())");
    let child = place.wait_started(&mut hydrad, "p:s", 1);
    assert!(hydrad.terminate().success());
    assert!(!lives(child));
    let sql = "select startTime is null and triggerTime is not null and errorMsg is null,
                      (select count(*) from SystemStatus where what = 'evaluator') from Jobsets";
    let row = place.client().query_one(sql, &[]).expect(sql);
    assert_eq!((row.get(0), row.get(1)), (true, 0_i64));
    place.file("go-s", "");
    let mut hydrad = place.evaluator();
    place.wait_started(&mut hydrad, "p:s", 2);
    place.wait_idle(&mut hydrad);
    assert!(hydrad.terminate().success());

    // A second signal ends what had all the time of the world.
    place.configure("stop_timeout = 1000\n");
    std::fs::remove_file(place.dir.join("go-s")).expect("removed");
    let mut hydrad = place.evaluator();
    place.sql("update Jobsets set triggerTime = extract(epoch from now())");
    let child = place.wait_started(&mut hydrad, "p:s", 3);
    hydrad.signal(libc::SIGTERM);
    hydrad.wait_log("evaluator: stopping: 1 evaluations are ended");
    assert!(lives(child));
    assert!(hydrad.terminate().success());
    assert!(!lives(child));
}

#[test]
fn hydras_own_evaluator_is_named_and_its_options_are_understood() {
    let place = Place::new("");
    place.jobset("p", "s", 1, 0);
    place.jobset("p", "disabled", 0, 0);
    place.jobset("p", "bad", 1, 0);
    place.file("do-bad", "exit 9");
    let link = place.dir.join("hydra-evaluator");
    std::os::unix::fs::symlink(common::binary(), &link).expect("a link");
    let as_hydra = |args: &[&str]| {
        let ours = place.hydrad(&[]).command();
        let mut command = RunAs::Unprivileged.command(&link);
        command.args(args);
        for (name, value) in ours.get_envs() {
            if let Some(value) = value {
                command.env(name, value);
            }
        }
        let output = command.output().expect("hydra-evaluator");
        let words = String::from_utf8_lossy(&output.stderr).into_owned();
        (output.status.code(), words)
    };
    let mut hydra = place.client();
    hydra
        .batch_execute("set application_name = 'hydra-evaluator'")
        .expect("a name");
    let (code, words) = as_hydra(&[]);
    assert_eq!(code, Some(2), "{words}");
    assert!(
        words.contains("Hydra's own evaluator works on this database"),
        "{words}"
    );

    // One jobset by hand does not mind, nor whether it is due.
    assert_eq!(as_hydra(&["p", "s", "--option", "x", "y"]).0, Some(0));
    assert_eq!(place.starts().len(), 1);
    let (code, words) = as_hydra(&["p", "bad"]);
    assert_eq!(code, Some(0), "{words}");
    assert!(
        words.contains("evaluation failed with exit code 9"),
        "{words}"
    );
    let sql = "select count(*) from Jobsets where startTime is null and errorMsg like 'evaluation failed with exit code 9%'";
    let count: i64 = place.client().query_one(sql, &[]).expect(sql).get(0);
    assert_eq!(count, 1);
    for missing in [["p", "disabled"], ["p", "nothing"]] {
        let (code, words) = as_hydra(&missing);
        assert_eq!(code, Some(1), "{words}");
        assert!(
            words.contains("the specified jobset does not exist or is disabled"),
            "{words}"
        );
    }
    assert_eq!(as_hydra(&["p"]).0, Some(2));
    assert_eq!(as_hydra(&["--unlock"]).0, Some(0));
    let mut beside = place.hydrad(&["evaluator", "--beside"]).start();
    beside.wait_log("evaluator: active");
}

#[test]
fn pages_metrics_and_progress_tell_how_it_is() {
    let port = free_port();
    let place = Place::new(&format!("evaluator_address = 127.0.0.1:{port}\n"));
    place.jobset("p", "s", 1, 300);
    place.file(
        "do-s",
        &format!(
            "cat /proc/self/oom_score_adj > oom\n\
             echo '{{\"phase\":\"evaluating\",\"found\":7,\"evaluated\":3,\"failed\":1,\"memory_bytes\":1048576}}' \
             > /dev/fd/$HYDRAD_PROGRESS_FD\n{WAIT}"
        ),
    );
    let mut hydrad = place.evaluator();
    place.wait_started(&mut hydrad, "p:s", 1);
    let get = |path: &str| {
        let url = format!("http://127.0.0.1:{port}{path}");
        let agent: ureq::Agent = ureq::Agent::config_builder()
            .http_status_as_error(false)
            .build()
            .into();
        let mut answer = agent.get(url).call().expect("an answer");
        let status = answer.status().as_u16();
        (status, answer.body_mut().read_to_string().expect("text"))
    };
    let page = hydrad.eventually("its progress is told", || {
        let (_, page) = get("/status");
        page.contains("\"phase\":\"evaluating\"").then_some(page)
    });
    let page: Value = serde_json::from_str(&page).expect("JSON");
    let evaluation = &page["evaluations"][0];
    assert_eq!(evaluation["jobset"], "s");
    assert_eq!(evaluation["progress"]["found"], 7);
    assert_eq!(evaluation["memoryBytes"], 1_048_576);
    let (_, metrics) = get("/metrics");
    for line in [
        "hydrad_evaluator_active 1",
        "hydrad_evaluator_running 1",
        "hydrad_evaluator_started_total 1",
        "hydrad_evaluator_jobsets{state=\"evaluating\"} 1",
        "hydrad_evaluator_evaluation_jobs{project=\"p\",jobset=\"s\",jobs=\"evaluated\"} 3",
        "hydrad_evaluator_evaluation_memory_bytes{project=\"p\",jobset=\"s\"} 1048576",
    ] {
        assert!(metrics.lines().any(|had| had == line), "{line}: {metrics}");
    }
    assert_eq!(get("/healthz").0, 200);
    assert_eq!(get("/status/p/s").0, 200);
    assert_eq!(get("/status/p/x").0, 404);
    let text = hydrad.eventually("status tells it", || {
        let output = place
            .hydrad(&["status"])
            .command()
            .output()
            .expect("status");
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        text.contains("3 of 7, 1 failed").then_some(text)
    });
    assert!(
        text.contains("1 of 4 evaluations, 0 jobsets due, 1 enabled"),
        "{text}"
    );
    // It is ended before us when memory is short.
    let score = |path: PathBuf| -> i32 {
        let text = std::fs::read_to_string(path).expect("a score");
        text.trim().parse().expect("a number")
    };
    let ours = score(format!("/proc/{}/oom_score_adj", hydrad.pid()).into());
    assert!(score(place.dir.join("oom")) > ours);
    place.file("go-s", "");
    place.wait_idle(&mut hydrad);
    let (_, metrics) = get("/metrics");
    assert!(
        metrics.contains("hydrad_evaluator_ended_total{result=\"done\"} 1"),
        "{metrics}"
    );
}

/// Programs of Nix's and others, each with a script before it that notes its name and the heap that its environment sets.
fn noting(site: &Site, programs: &[&str]) -> (String, PathBuf) {
    let path = std::env::var("PATH").expect("a PATH");
    let notes = site.file("heaps", "");
    let folder = site.folder("noting");
    for program in programs {
        let script = format!(
            "#!/bin/sh\necho \"{program} ${{GC_INITIAL_HEAP_SIZE-none}}\" >> {}\nPATH={path} exec {program} \"$@\"\n",
            notes.display()
        );
        let file = site.file(&format!("noting/{program}"), &script);
        std::fs::set_permissions(file, std::fs::Permissions::from_mode(0o755)).expect("chmod");
    }
    (format!("{}:{path}", folder.display()), notes)
}

/// Nothing stands in for anything here: from the trigger to the rows of the queue.
#[test]
fn s3_a_jobset_is_evaluated_and_the_heap_is_that_of_evaluating_processes_alone() {
    let site = Site::new(Pg::shared());
    site.configure(
        "services = queue-runner evaluator\nevaluator_address = none\nevaluator_initial_heap_size = 48M\n\
         path_input_cache_validity_seconds = 0\n",
    );
    let folder = site.folder("src");
    let expression = |words: &str| {
        let job = format!(
            "derivation {{ name = \"job\"; system = \"{}\"; builder = \"/none\"; words = \"{words}\"; }}",
            common::system()
        );
        let broken = "broken = throw \"it is broken\";";
        site.file(
            "src/jobs.nix",
            &format!("{{ src }}: {{ job = {job}; {broken} }}"),
        );
    };
    expression("first");
    site.db
        .client()
        .batch_execute(&format!(
            "insert into Users (userName, emailAddress, password) values ('u', '', '!');
             insert into Projects (name, displayName, owner) values ('p', 'P', 'u');
             insert into Jobsets (project, name, nixExprInput, nixExprPath, emailOverride, checkInterval) values ('p', 's', 'src', 'jobs.nix', '', 0);
             insert into JobsetInputs (project, jobset, name, type) values ('p', 's', 'src', 'path');
             insert into JobsetInputAlts (project, jobset, input, altnr, value) values ('p', 's', 'src', 0, '{}')",
            folder.display()
        ))
        .expect("a jobset");
    let (path, notes) = noting(
        &site,
        &["nix", "nix-daemon", "nix-store", "nix-instantiate"],
    );
    let listener = site.db.listen(&["builds_added"]);
    let mut hydrad = site.hydrad(&["run"]).env("PATH", path).start();
    hydrad.wait_log("evaluator: active");
    hydrad.wait_log("ready: ");
    let trigger = || {
        let sql = "update Jobsets set triggerTime = extract(epoch from now())";
        site.db.client().batch_execute(sql).expect("triggered");
    };
    trigger();
    listener.wait_for("builds_added", "1");
    let idle = "select startTime is null and triggerTime is null and lastCheckedTime is not null from Jobsets";
    hydrad.wait_sql(&site.db, idle);
    let row = "select errorMsg like '%it is broken%' and fetchErrorMsg is null,
                      (select string_agg(job, ' ') from Builds where isCurrent = 1) from Jobsets";
    let row = site.db.client().query_one(row, &[]).expect("a row");
    assert_eq!((row.get(0), row.get(1)), (true, "job"));

    // The evaluating processes have it, and nobody else: neither who fetches, nor the daemon.
    let notes = std::fs::read_to_string(notes).expect("notes");
    let heaps: BTreeSet<&str> = notes.lines().collect();
    let with: Vec<&&str> = heaps.iter().filter(|line| line.ends_with(" 48M")).collect();
    assert_eq!(with.len(), 1, "{heaps:?}");
    assert!(
        heaps.contains("nix-daemon none"),
        "the input is fetched: {heaps:?}"
    );
    let environment =
        std::fs::read(format!("/proc/{}/environ", hydrad.pid())).expect("its environment");
    assert!(!String::from_utf8_lossy(&environment).contains("GC_INITIAL_HEAP_SIZE"));

    // Unchanged, then changed.
    trigger();
    hydrad.wait_log_times("evaluation done after", 2);
    expression("second");
    trigger();
    hydrad.wait_sql(&site.db, "select count(*) = 2 from Builds");
    hydrad.wait_sql(&site.db, idle);
    assert_eq!(
        site.rows("select id || ' ' || isCurrent from Builds order by id"),
        ["1 0", "2 1"]
    );
    hydrad.wait_log_times("evaluation done after", 3);
    // One that fails as a whole is on record too.
    site.file("src/jobs.nix", "{ src }: {");
    trigger();
    hydrad.wait_log("evaluation failed after");
    hydrad.wait_sql(
        &site.db,
        "select errorMsg like '%syntax error%' and startTime is null from Jobsets",
    );
    assert!(hydrad.terminate().success());
}
