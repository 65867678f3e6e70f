//! What happens around a switch from one queue runner to the next: work that was under way, a runner that only watches,
//! Hydra's rows before and after, and what a queue would take.

mod common;

use common::{eventually, FarMachine, Farm, Hydrad, NixStore, Pg, RunAs, Site, TestDir};

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

// ---- from Hydra's rows, and back to Hydra

/// A busy row as the C++ program leaves it when it is killed, with the outputs it knew of.
fn left_by_cpp(site: &Site, build: i32, phase: i32, machine: &str) {
    site.db
        .client()
        .execute(
            "with step as (
                insert into BuildSteps (build, stepnr, type, drvPath, busy, startTime, machine, system)
                select id, coalesce((select max(stepnr) from BuildSteps s where s.build = b.id), 0) + 1, 0, drvPath, $2,
                       extract(epoch from now())::int - 100, $3, system
                from Builds b where id = $1 returning build, stepnr)
             insert into BuildStepOutputs (build, stepnr, name, path)
             select step.build, stepnr, name, path from step join BuildOutputs o on o.build = step.build",
            &[&build, &phase, &machine],
        )
        .unwrap();
}

/// Goes from C++ to hydrad, which is killed, back to C++, and to hydrad again.
fn there_and_back(version: i32) {
    let site = Site::new(Pg::shared());
    site.db.at_version(version);
    site.machines(&Site::stub("m1", 4, 1, "-"));
    let long = r#"long = derivation { name = "long"; system = builtins.currentSystem; builder = "/none"; stubSeconds = "3600"; };"#;
    let bad = r#"derivation { name = "bad"; system = builtins.currentSystem; builder = "/none"; stubStatus = "3"; }"#;
    let needs = |name: &str| {
        format!(
            r#"{name} = derivation {{ name = "{name}"; system = builtins.currentSystem; builder = "/none"; input = {bad}; }};"#
        )
    };
    let plain = common::stub_jobs("job", 5, "");
    let plain = plain.trim().trim_matches(['{', '}']);
    let builds = site.queue(&format!(
        "{{ {plain} {long} {} {} }}",
        needs("needs1"),
        needs("needs2")
    ));
    let [done, busy, failed_before, fresh, aborted, long, ..] = builds[..] else {
        panic!("{builds:?}")
    };
    let mut client = site.db.client();
    // What Hydra had done: one build is finished and not yet told of; two attempts were under way when it was killed, one
    // had been aborted; one path is known to fail; mail is to be sent again; and it had shown its status.
    client
        .batch_execute(&format!(
            "update Builds set finished = 1, buildStatus = 0, isCachedBuild = 0, startTime = 1000, stopTime = 1100, size = 5,
                    closureSize = 6, notificationPendingSince = 1100 where id = {done};
             insert into BuildProducts (build, productnr, type, subtype, path, name) values ({done}, 1, 'doc', '', '/x', 'x');
             insert into BuildSteps (build, stepnr, type, drvPath, busy, status, startTime, stopTime, machine, overhead)
             values ({done}, 1, 0, (select drvPath from Builds where id = {done}), 0, 0, 1000, 1100, 'ssh://m1', 30);
             insert into BuildStepOutputs (build, stepnr, name, path)
             select build, 1, name, path from BuildOutputs where build = {done};
             insert into BuildSteps (build, stepnr, type, drvPath, busy, status, errorMsg, startTime, machine)
             values ({aborted}, 1, 0, (select drvPath from Builds where id = {aborted}), 0, 3, 'cannot connect', 1000, 'ssh://m1');
             insert into FailedPaths select path from BuildOutputs where build = {failed_before};
             insert into TaskRetries (channel, pluginname, payload, attempts, retry_at)
             values ('build_finished', 'Hydra::Plugin::EmailNotification', '{done}', 1, 2000000000);
             insert into SystemStatus values ('queue-runner', '{{\"status\": \"up\"}}');"
        ))
        .unwrap();
    left_by_cpp(&site, busy, 30, "ssh://m1");
    left_by_cpp(&site, fresh, 1, "");
    let (untouched_sql, untouched) = {
        let sql = format!(
            "select b.notificationPendingSince, b.stopTime, t.payload, t.attempts, t.retry_at, p.path
             from Builds b, TaskRetries t, BuildProducts p where b.id = {done} and p.build = b.id"
        );
        let rows = site.rows(&sql);
        (sql, rows)
    };

    // hydrad works on these rows, and is killed in the middle of a build.
    let mut hydrad = site.start();
    hydrad.wait_sql(
        &site.db,
        &format!("select array_agg(id) = array[{long}] from Builds where finished = 0"),
    );
    hydrad.wait_sql(
        &site.db,
        &format!("select count(*) = 1 from BuildSteps where build = {long} and busy = 30"),
    );
    hydrad.kill_9();
    assert_eq!(site.rows(&untouched_sql), untouched, "what was Hydra's");
    assert_eq!(
        site.rows(
            "select job, buildStatus, isCachedBuild from Builds where finished = 1 order by job"
        ),
        [
            "job000 0 0",
            "job001 0 0",
            "job002 1 1",
            "job003 0 0",
            "job004 0 0",
            "needs1 2 0",
            "needs2 2 0"
        ]
    );

    // Back to C++, which reads and writes as it does. Its start, clearBusy:
    let cleared = client
        .execute(
            "update BuildSteps set busy = 0, status = 3, stopTime = null where busy <> 0",
            &[],
        )
        .unwrap();
    assert_eq!(cleared, 1);
    // getQueuedBuilds; a null would be an exception.
    let queued = client
        .query(
            "select b.id, b.jobset_id, j.project, j.name, b.job, b.drvPath, b.maxsilent, b.timeout, b.timestamp,
                    b.globalPriority, b.priority
             from Builds b inner join Jobsets j on b.jobset_id = j.id where finished = 0
             order by globalPriority desc, random()",
            &[],
        )
        .unwrap();
    assert_eq!(queued.len(), 1);
    assert_eq!(
        (
            queued[0].get::<_, i32>(0),
            queued[0].get::<_, i32>(6),
            queued[0].get::<_, i32>(7)
        ),
        (long, 7200, 36000)
    );
    // getBuildOutputCached: the first output of what hydrad built, its products and metrics.
    for build in [busy, fresh, aborted] {
        let row = client
            .query_one(
                "select b.id, b.buildStatus, b.releaseName, b.closureSize, b.size
                 from Builds b join BuildOutputs o on b.id = o.build
                 where b.finished = 1 and (b.buildStatus = 0 or b.buildStatus = 6)
                   and o.path = (select path from BuildOutputs where build = $1 order by name limit 1)",
                &[&build],
            )
            .unwrap();
        assert_eq!(row.get::<_, i32>(0), build);
        assert!(row.get::<_, i64>(3) > 0 && row.get::<_, i64>(4) > 0);
        assert_eq!(row.get::<_, Option<String>>(2), None);
        client
            .query(
                "select type, subtype, fileSize, sha256hash, path, name, defaultPath from BuildProducts where build = $1
                 order by productnr",
                &[&build],
            )
            .unwrap();
    }
    // Everything it reads into plain values, and what its web pages and its notifier rely on.
    for (what, sql) in [
        ("steps with an unknown status or type", "select build, stepnr from BuildSteps
          where status not in (0, 1, 3, 4, 7, 8, 9, 10, 11, 12) or type not in (0, 1) or machine is null or drvPath is null"),
        ("builds with an unknown status", "select id from Builds where buildStatus not in (0, 1, 2, 3, 4, 6, 7, 9, 10, 11, 12)"),
        ("builds without limits", "select id from Builds where maxsilent is null or timeout is null"),
        ("finished builds that nobody is told of", "select id from Builds where finished = 1 and notificationPendingSince is null"),
        ("outputs without a path", "select build from BuildOutputs where path is null and build in (select id from Builds where finished = 1)"),
        ("a history of shares that goes back", "select build from BuildSteps where stopTime < startTime"),
        ("a machine's name that is not in its file", "select machine from BuildSteps where machine not in ('', 'm1', 'ssh://m1')"),
    ] {
        assert_eq!(site.rows(sql), [""; 0], "{what}");
    }
    // The origin of a failure, as for a build that meets it later.
    assert_eq!(
        site.rows(
            "select count(*), count(*) filter (where propagatedFrom is null), max(status)
             from BuildSteps where drvPath like '%-bad.drv'"
        ),
        ["2 1 1"]
    );
    // It builds what is left, and is killed with another attempt under way.
    client
        .batch_execute(&format!(
            "insert into BuildSteps (build, stepnr, type, drvPath, busy, startTime, machine, system)
             select id, (select max(stepnr) + 1 from BuildSteps s where s.build = b.id), 0, drvPath, 1, 3000, 'ssh://m1', system
             from Builds b where id = {long} on conflict do nothing;
             insert into BuildStepOutputs (build, stepnr, name, path)
             select o.build, (select max(stepnr) from BuildSteps s where s.build = o.build), name, path
             from BuildOutputs o where build = {long};
             update BuildSteps set busy = 0, status = 0, stopTime = 3100, overhead = 10 where build = {long} and busy = 1;
             update Builds set finished = 1, buildStatus = 0, startTime = 3000, stopTime = 3100, size = 1, closureSize = 1,
                    isCachedBuild = 0, notificationPendingSince = 3100 where id = {long};"
        ))
        .unwrap();
    assert_eq!(
        site.rows(&format!(
            "select stepnr, status from BuildSteps where build = {long} order by stepnr"
        )),
        ["1 3", "2 0"]
    );
    let more = site.queue_in("more", &common::stub_jobs("more", 2, ""));
    left_by_cpp(&site, more[0], 40, "ssh://m1");

    // And to hydrad again.
    let mut hydrad = site.start();
    site.wait_all_finished(&mut hydrad);
    hydrad.wait_sql(
        &site.db,
        "select not exists (select 1 from BuildSteps where busy <> 0)",
    );
    assert!(hydrad.terminate().success());
    site.assert_complete();
    assert_eq!(site.rows(&untouched_sql), untouched);
    assert_eq!(
        site.ask::<i32>("select version from SchemaVersion"),
        version
    );
}

#[test]
fn from_hydra_and_back_at_schema_82() {
    there_and_back(82);
}

#[test]
fn from_hydra_and_back_at_schema_85() {
    there_and_back(85);
}

#[test]
fn from_hydra_and_back_at_schema_87() {
    there_and_back(87);
}

// ---- beside another queue runner

/// Another queue runner, played by its rows.
struct Other<'a> {
    site: &'a Site,
}

impl Other<'_> {
    fn run(&self, sql: &str) {
        self.site
            .db
            .client()
            .batch_execute(sql)
            .unwrap_or_else(|e| panic!("{sql}: {e:?}"));
    }

    fn starts(&self, build: i32, machine: &str) {
        left_by_cpp(self.site, build, 30, machine);
    }

    fn step_succeeds(&self, build: i32) {
        self.run(&format!(
            "update BuildSteps set busy = 0, status = 0, stopTime = extract(epoch from now())::int
             where build = {build} and busy <> 0"
        ));
    }

    fn build_ends(&self, build: i32, status: i32) {
        self.run(&format!(
            "update Builds set finished = 1, buildStatus = {status}, isCachedBuild = 0,
                    startTime = extract(epoch from now())::int, stopTime = extract(epoch from now())::int where id = {build};
             notify build_finished, '{build}'"
        ));
    }
}

#[test]
fn the_shadow_of_another_runner_writes_nothing_and_lists_what_it_would_do_otherwise() {
    let site = Site::new(Pg::shared());
    site.machines(&(Site::stub("m1", 1, 1, "-") + "m2 x86_64-linux - lots\n"));
    let jobs = common::stub_jobs("job", 30, "");
    let jobs = jobs.trim().trim_matches(['{', '}']);
    let builds = site.queue(&format!(
        r#"rec {{ {jobs} late = derivation {{ name = "late"; system = "{}"; builder = "/none"; input = job029; }}; }}"#,
        common::system()
    ));
    let other = Other { site: &site };
    // A session of Hydra's own program is no reason not to watch it.
    let mut config = site.db.config();
    let mut hydra = config
        .application_name("hydra-queue-runner")
        .connect(postgres::NoTls)
        .unwrap();
    let files = || {
        let mut names: Vec<_> = std::fs::read_dir(site.data())
            .unwrap()
            .map(|entry| entry.unwrap().file_name())
            .collect();
        names.sort();
        names
    };
    let (before, files_before) = (rows_written(&site), files());
    let mut shadow = site
        .hydrad(&["queue-runner", "--shadow", "--json", "--grace", "2"])
        .env("HYDRA_DBI", reader_of(&site))
        .start();
    let told = |shadow: &mut Hydrad, kind: &str, text: &str| {
        let line = shadow.wait_log(&format!("\"kind\":\"{kind}\""));
        assert!(line.contains(text), "{text}: {line}");
    };
    told(&mut shadow, "configuration", "machines:2");
    // Nothing is started on a free slot.
    told(&mut shadow, "not-started", "‘m1’ has a free slot");
    assert_eq!(rows_written(&site), before, "nothing was written");
    assert_eq!(files(), files_before);
    assert_eq!(
        site.ask::<i64>("select count(*) from pg_locks where locktype = 'advisory'"),
        0
    );
    hydra.execute("select 1", &[]).unwrap();

    // What waits for something is started.
    other.starts(builds[30], "m1");
    told(&mut shadow, "started-early", "-late.drv");
    other.run("update BuildSteps set busy = 0, status = 4, stopTime = extract(epoch from now())::int where busy <> 0");
    // On a machine that is not listed.
    other.starts(builds[0], "ssh://elsewhere");
    told(&mut shadow, "unknown-machine", "‘ssh://elsewhere’");
    // A success is called a failure, and another one is forgotten.
    other.step_succeeds(builds[0]);
    other.build_ends(builds[0], 1);
    told(
        &mut shadow,
        "build-status",
        "ended as ‘failed’; we would say ‘succeeded’",
    );
    other.starts(builds[1], "ssh://m1");
    other.step_succeeds(builds[1]);
    told(
        &mut shadow,
        "build-late",
        &format!("build {} is not finished", builds[1]),
    );
    // One is the most urgent, and all others are started before it.
    other.run(&format!(
        "update Builds set globalPriority = 100 where id = {}",
        builds[28]
    ));
    for build in &builds[2..28] {
        if shadow.log().contains("\"kind\":\"order\"") {
            break;
        }
        other.starts(*build, "m1");
        let drv: String = site.ask(&format!("select drvPath from Builds where id = {build}"));
        shadow.wait_log(&format!("started there: ‘{drv}’"));
        other.step_succeeds(*build);
        other.build_ends(*build, 0);
    }
    told(&mut shadow, "order", "-job028.drv’ was passed over by");
    shadow.signal(libc::SIGINT);
    assert_eq!(shadow.wait().code(), Some(1), "there were differences");
    let log = shadow.log();
    let summary = log
        .lines()
        .rfind(|line| line.contains("\"summary\""))
        .unwrap();
    let summary: serde_json::Value = serde_json::from_str(summary).unwrap();
    assert!(summary["startsAlike"].as_u64().unwrap() >= 4, "{summary}");
    assert!(summary["buildsAlike"].as_u64().unwrap() >= 3, "{summary}");
    assert_eq!(
        summary["differences"]["build-status"]["count"], 1,
        "{summary}"
    );
    assert!(!log.contains("BUG"), "{log}");
}

#[test]
fn the_shadow_compares_machines_and_caps() {
    let site = Site::new(Pg::shared());
    site.configure("max_running_steps = manual:1\n");
    site.machines(&(Site::stub("m1", 1, 1, "-") + &Site::stub("m2", 2, 9, "kvm")));
    let builds = site.queue(&format!(
        r#"{{ a = derivation {{ name = "a"; system = "{0}"; builder = "/none"; }};
             b = derivation {{ name = "b"; system = "{0}"; builder = "/none"; }};
             c = derivation {{ name = "c"; system = "{0}"; builder = "/none"; requiredSystemFeatures = [ "kvm" ]; }}; }}"#,
        common::system()
    ));
    let other = Other { site: &site };
    let mut shadow = site
        .hydrad(&["queue-runner", "--shadow", "--json", "--grace", "600"])
        .env("HYDRA_DBI", reader_of(&site))
        .start();
    shadow.wait_log("queue loaded: 3 builds");
    other.starts(builds[0], "m1");
    shadow.wait_log("-a.drv’ was started on ‘m1’; we would have taken ‘m2’");
    // A second one of the same project.
    other.starts(builds[1], "m2");
    let line = shadow.wait_log("\"kind\":\"cap\"");
    assert!(
        line.contains("-b.drv’") && line.contains("has reached its cap of 1"),
        "{line}"
    );
    for build in &builds[..2] {
        other.step_succeeds(*build);
        other.build_ends(*build, 0);
    }
    shadow.wait_log_times("ended there as expected", 2);
    // What needs kvm on a machine without it.
    other.starts(builds[2], "m1");
    let line = shadow.wait_log("\"kind\":\"machine\"");
    assert!(line.contains("-c.drv’ was started on ‘m1’"), "{line}");
    shadow.signal(libc::SIGINT);
    assert_eq!(shadow.wait().code(), Some(1), "there were differences");
    let log = shadow.log();
    let summary = log.lines().rfind(|line| line.contains("\"summary\""));
    let summary: serde_json::Value = serde_json::from_str(summary.expect("one")).expect("JSON");
    let machines = [&summary["machinesAlike"], &summary["machinesOther"]];
    assert_eq!(machines, [1, 1], "{summary}");
}

#[test]
fn the_shadow_of_a_runner_that_decides_alike_has_nothing_to_tell() {
    let site = Site::new(Pg::shared());
    site.machines(&(Site::stub("m1", 2, 1, "-") + &Site::stub("m2", 1, 2, "kvm")));
    let jobs = common::stub_jobs("job", 12, "stubSeconds = \"0.3\";");
    let jobs = jobs.trim().trim_matches(['{', '}']);
    let mut shadow = site
        .hydrad(&["queue-runner", "--shadow", "--grace", "30"])
        .env("HYDRA_DBI", reader_of(&site))
        .start();
    shadow.wait_log("following the queue runner");
    let mut hydrad = site.start();
    site.queue(&format!(
        r#"rec {{ {jobs}
            after = derivation {{ name = "after"; system = "{0}"; builder = "/none"; input = job000; }};
            bad = derivation {{ name = "bad"; system = "{0}"; builder = "/none"; stubStatus = "3"; }};
            dependent = derivation {{ name = "dependent"; system = "{0}"; builder = "/none"; input = bad; }};
            special = derivation {{ name = "special"; system = "{0}"; builder = "/none"; requiredSystemFeatures = [ "kvm" ]; }};
        }}"#,
        common::system()
    ));
    site.wait_all_finished(&mut hydrad);
    shadow.wait_log_times("ended there as expected", 16);
    shadow.signal(libc::SIGINT);
    let status = shadow.wait();
    let log = shadow.log();
    assert!(
        log.contains("16 ended builds alike, 0 differences"),
        "{log}"
    );
    assert_eq!(status.code(), Some(0), "{log}");
}
