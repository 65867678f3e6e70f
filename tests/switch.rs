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
