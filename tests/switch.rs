//! What happens around a switch from one queue runner to the next: work that was under way, a runner that only watches,
//! Hydra's rows before and after, and what a queue would take.

mod common;

use common::{eventually, FarMachine, Farm, NixStore, Pg, RunAs, Site, TestDir};

/// A job that says that it runs, waits for a file and then ends.
fn patient_job(store: &NixStore, name: &str, dir: &TestDir) -> String {
    store
        .instantiate(&format!(
            r#"derivation {{ name = "{name}"; system = builtins.currentSystem; builder = "/bin/sh"; PATH = "/usr/bin:/bin";
               args = [ "-c" "echo run >> {dir}/runs; echo one line; until test -e {dir}/open; do sleep 0.02; done; echo built > $out" ]; }}"#,
            dir = dir.path().display()
        ))
        .remove(0)
}

fn writable_dir() -> TestDir {
    use std::os::unix::fs::PermissionsExt;
    let dir = TestDir::new(RunAs::Me);
    std::fs::set_permissions(dir.path(), std::fs::Permissions::from_mode(0o777)).unwrap();
    dir
}

fn machine_line(name: &str, slots: u32) -> String {
    format!("{name} {} - {slots} 1 - -\n", common::system())
}

#[test]
fn what_a_machine_finished_while_hydrad_was_away_is_fetched_and_not_built_again() {
    let store = NixStore::owned_by(RunAs::Unprivileged);
    let far = FarMachine::new(&store, "builder");
    let dir = writable_dir();
    let farm = Farm::new(&store).with_machines(&machine_line("builder", 2));
    let drv = patient_job(&store, "patient", &dir);
    let unfinished = store
        .instantiate(
            r#"derivation { name = "unfinished"; system = builtins.currentSystem; builder = "/bin/sh"; PATH = "/usr/bin:/bin";
               args = [ "-c" "sleep 1000" ]; }"#,
        )
        .remove(0);
    let mut hydrad = farm.run(&far.env());
    let builds = farm.enqueue(&[&drv, &unfinished]);
    hydrad.wait_sql(
        &farm.db,
        "select count(*) = 2 from BuildSteps where busy = 30",
    );
    eventually("the builder runs", || {
        dir.join("runs").exists().then_some(())
    });

    // hydrad hears of nothing any more; then the build ends there; then hydrad is gone.
    hydrad.signal(libc::SIGSTOP);
    std::fs::write(dir.join("open"), "").unwrap();
    let output = store.outputs(&drv).remove(0);
    eventually("the machine has the output", || {
        far.store.is_valid(&output).then_some(())
    });
    hydrad.kill_9();
    assert!(!store.is_valid(&output));
    // As Hydra's last C++ release writes a machine's name.
    farm.client()
        .execute("update BuildSteps set machine = 'ssh://' || machine", &[])
        .unwrap();

    let heard = farm.db.listen(&["step_finished", "build_finished"]);
    let mut hydrad = farm.run(&far.env());
    farm.wait_ended(&mut hydrad, &builds[..1]);
    let runs = std::fs::read_to_string(dir.join("runs")).unwrap();
    assert_eq!(runs.lines().count(), 1, "built once");
    assert!(store.is_valid(&output));
    let row = |sql: &str| -> (i64, i64) {
        let row = farm.client().query_one(sql, &[&builds[0]]).unwrap();
        (row.get(0), row.get(1))
    };
    assert_eq!(
        row("select count(*), count(*) filter (where status = 0 and busy = 0 and stopTime >= startTime)
             from BuildSteps where build = $1"),
        (1, 1),
        "the row that was busy is the success"
    );
    assert_eq!(
        row("select count(*), sum(isCachedBuild)::bigint from Builds where id = $1 and buildStatus = 0"),
        (1, 0),
        "built, not cached"
    );
    let log = farm.log_path(&drv);
    assert_eq!(std::fs::read_to_string(&log).unwrap(), "one line\n");
    heard.wait_for("build_finished", &builds[0].to_string());
    heard.wait_for(
        "step_finished",
        &format!("{}\t1\t{}", builds[0], log.display()),
    );
    // The other one was not finished: its row is aborted, and it is built again.
    hydrad.wait_sql(
        &farm.db,
        &format!(
            "select array_agg(status order by stepnr) filter (where stepnr = 1) = array[3] and
                    bool_or(stepnr = 2 and busy = 30) from BuildSteps where build = {}",
            builds[1]
        ),
    );
    assert!(!hydrad.log().contains("BUG"), "{}", hydrad.log());
}

#[test]
fn a_machine_that_does_not_answer_after_a_restart_costs_seconds_and_no_build() {
    let site = Site::new(Pg::shared());
    site.machines(&(Site::stub("m1", 1, 1, "-") + &Site::stub("m2", 1, 1, "-")));
    site.stubs.set("m1", &[("seconds", "3600")]);
    site.stubs.set("m2", &[("seconds", "3600")]);
    site.queue(&common::stub_jobs("a", 2, ""));
    let mut hydrad = site.start();
    hydrad.wait_sql(
        &site.db,
        "select count(*) = 2 from BuildSteps where busy = 30",
    );
    hydrad.kill_9();
    site.stubs.set("m1", &[("fault", "hang-in-handshake@1")]);
    site.stubs.set("m2", &[("fault", "die-in-connect@1")]);
    let mut hydrad = site.start();
    site.wait_all_finished(&mut hydrad);
    site.assert_complete();
    hydrad.wait_log("cannot ask 'm1' what it finished");
    hydrad.wait_log("cannot ask 'm2' what it finished");
    assert_eq!(
        site.rows("select status, count(*) from BuildSteps group by 1 order by 1"),
        ["0 2", "3 2"]
    );
}

#[test]
fn a_build_whose_connection_is_lost_at_its_end_is_fetched_over_another_one() {
    let site = Site::new(Pg::shared());
    site.machines(&Site::stub("m1", 1, 1, "-"));
    site.stubs
        .set("m1", &[("fault", "kill-in-build@1"), ("kept", "all")]);
    site.queue(&common::stub_jobs("a", 1, ""));
    let mut hydrad = site.start();
    site.wait_all_finished(&mut hydrad);
    site.assert_complete();
    hydrad.wait_log("the connection to 'm1' was lost, but it has finished");
    let runs = site.stubs.events();
    let runs = runs.iter().filter(|(_, _, event, _)| event == "build");
    assert_eq!(runs.count(), 1);
    assert_eq!(
        site.rows("select status, isCachedBuild from Builds join BuildSteps on build = id"),
        ["0 0"]
    );
    // A machine that has nothing is asked in vain, and the step goes its usual way.
    site.stubs.set("m1", &[("fault", "kill-in-build@1")]);
    site.queue(&common::stub_jobs("b", 1, ""));
    site.wait_all_finished(&mut hydrad);
    assert_eq!(
        site.rows("select s.status from Builds join BuildSteps s on build = id where job like 'b%' order by stepnr"),
        ["3", "0"]
    );
}

// ---- who only looks

/// A role that may read everything and write nothing; for HYDRA_DBI.
fn reader_of(site: &Site) -> String {
    let mut superuser = site.db.superuser();
    superuser
        .batch_execute(
            "do $$ begin create role looker login; exception when duplicate_object then null; end $$;
             grant usage on schema public to looker; grant select on all tables in schema public to looker;",
        )
        .unwrap();
    site.db.dbi().replace("user=hydra", "user=looker")
}

/// Rows inserted, updated and deleted in this database since it was made, by its own statistics.
fn rows_written(site: &Site) -> i64 {
    // A session tells what it did at its end, or when it is idle; this one has not written.
    let sql = "select (select coalesce(sum(n_tup_ins + n_tup_upd + n_tup_del), 0) from pg_stat_user_tables)::bigint";
    let mut last = -1;
    eventually("the statistics stand still", || {
        let now: i64 = site.ask(sql);
        let same = now == last;
        last = now;
        std::thread::sleep(std::time::Duration::from_millis(1500));
        same.then_some(now)
    })
}

fn json_of(command: &mut std::process::Command) -> serde_json::Value {
    serde_json::from_str(&common::output_of(command)).expect("JSON")
}

#[test]
fn simulate_from_database_says_when_the_queue_is_done_and_what_other_machines_would_change() {
    let site = Site::new(Pg::shared());
    site.machines(&Site::localhost(1));
    let job = |name: &str, attributes: &str| {
        format!(
            r#"{name} = derivation {{ name = "{name}"; system = "{}"; builder = "/none"; {attributes} }};"#,
            common::system()
        )
    };
    let slow: String = (1..=4).map(|n| job(&format!("slow-{n}"), "")).collect();
    let first = site.queue_in("first", &format!("rec {{ {slow} }}"));
    let second = site.queue_in(
        "second",
        &format!(
            "rec {{ {slow} {} {} }}",
            // Waits for one of the others.
            job("after", r#"input = slow-1;"#),
            job("special", r#"requiredSystemFeatures = [ "kvm" ];"#),
        ),
    );
    // The past: versions of `slow` took 100 s, this very `after` took 7 s of which copying took 2.
    site.db
        .client()
        .execute(
            "insert into BuildSteps (build, stepnr, type, drvPath, busy, status, startTime, stopTime, system, overhead)
             select $1, 100 + n, 0, '/nix/store/aabbccddaabbccddaabbccddaabbccdd-' || name || '.drv', 0, 0, 1000 * n, 1000 * n + secs,
                    'x86_64-linux', overhead
             from (values (1, 'slow-0.9', 100, 0), (2, 'slow-0.8', 100, 0), (3, 'slow-0.7', 5, 0), (4, 'after', 5, 2000))
                  as past (n, name, secs, overhead)",
            &[&first[0]],
        )
        .unwrap();
    let more = site.file(
        "more-machines",
        &format!(
            "{}far {} - 4 1 kvm -\n",
            Site::localhost(1),
            common::system()
        ),
    );

    let before = rows_written(&site);
    let reader = reader_of(&site);
    let simulate = |args: &[&str]| {
        let args: Vec<&str> = ["simulate", "--from-database"]
            .iter()
            .chain(args)
            .copied()
            .collect();
        site.hydrad(&args).env("HYDRA_DBI", &reader).command()
    };
    let report = json_of(&mut simulate(&[
        "--json",
        "--machines",
        more.to_str().unwrap(),
    ]));
    let scenarios = report["scenarios"].as_array().unwrap();
    let picture = |scenario: &serde_json::Value| {
        let of = |list: &str, name: &str| -> Vec<(String, i64, i64, i64)> {
            let list = scenario[list].as_array().unwrap().iter();
            list.map(|row| {
                (
                    row[name].as_str().unwrap().to_owned(),
                    row["builds"].as_i64().unwrap(),
                    row["seconds"].as_i64().unwrap(),
                    row["never"].as_i64().unwrap(),
                )
            })
            .collect()
        };
        (of("evaluations", "jobset"), of("jobsets", "name"))
    };
    let row = |name: &str, builds, seconds, never| (name.to_owned(), builds, seconds, never);
    // One slot: four times 100 s; `after` comes first or last, in 7 s.
    let now = vec![
        row("manual:first", 4, picture(&scenarios[0]).0[0].2, 0),
        row("manual:second", 6, 407, 1),
    ];
    assert_eq!(picture(&scenarios[0]), (now.clone(), now.clone()));
    assert!((400..=407).contains(&now[0].2), "{report:#}");
    assert_eq!(scenarios[0]["seconds"], 407);
    // A slot for everything, and a machine with the feature; what is special takes as long as most things do.
    let then = vec![
        row("manual:first", 4, 100, 0),
        row("manual:second", 6, 107, 0),
    ];
    assert_eq!(picture(&scenarios[1]), (then.clone(), then));
    assert_eq!(scenarios[0]["bottleneck"], common::system());
    assert_eq!(scenarios[0]["neverBuilt"][0]["build"], second[5]);
    assert_eq!(
        scenarios[0]["neverBuilt"][0]["why"],
        "unsupported system type"
    );
    assert_eq!(scenarios[0]["durations"]["byName"], 1);
    assert_eq!(scenarios[0]["durations"]["byNameWithoutVersion"], 4);
    assert_eq!(scenarios[1]["durations"]["guessed"], 1);

    // All the same, twice as fast; and as a person reads it.
    let report = json_of(&mut simulate(&["--json", "--speed", "localhost=2"]));
    assert_eq!(report["scenarios"][1]["seconds"], 203);
    let text = common::output_of(&mut simulate(&["--speed", "2"]));
    for line in [
        "10 builds are queued; 5 steps have to be built of 6 looked at.",
        "now: 1 machines with 1 slots: all done in 6 min 47 s",
        "then: 1 machines with 1 slots: all done in 3 min 23 s",
        "bottleneck (now): x86_64-linux, whose steps waited",
        &format!(
            "never (then): 1 builds, for instance {}: unsupported system type",
            second[5]
        ),
    ] {
        assert!(text.contains(line), "{line}\n{text}");
    }
    let output = simulate(&["--speed", "nobody=2"]).output().unwrap();
    assert_eq!(output.status.code(), Some(2));
    assert!(String::from_utf8_lossy(&output.stderr).contains("no machine of this name is listed"));
    assert_eq!(rows_written(&site), before, "nothing was written");
}
