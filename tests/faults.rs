//! What goes wrong around the queue runner: nothing fails that is not the build's own fault, nothing is lost, and work
//! goes on by itself.

mod common;

use common::{stub_jobs, Hydrad, Pg, Site};

/// Nothing the program calls its own mistake, and no record it gave up.
fn assert_sane(hydrad: &Hydrad) {
    let log = hydrad.log();
    for word in ["BUG", "panicked", "given up"] {
        let line = log.lines().find(|line| line.contains(word));
        assert_eq!(line, None, "in the log");
    }
}

/// A process that a stub reported as its own.
fn end_process(pid: u32, signal: i32) {
    // SAFETY: kill has no memory arguments.
    unsafe { libc::kill(pid as i32, signal) };
}

#[test]
fn row_locks_of_an_evaluation_hold_up_their_own_builds_alone() {
    let site = Site::new(Pg::shared());
    site.machines(&Site::stub("m1", 8, 1, "-"));
    let builds = site.queue(&stub_jobs("a", 110, ""));
    let mut evaluation = site.db.client();
    let mut transaction = evaluation.transaction().unwrap();
    let held = &builds[..10];
    let locked = transaction.execute(
        "update Builds set isCurrent = 0 where id = any($1)",
        &[&held],
    );
    assert_eq!(locked.unwrap(), 10);

    let mut hydrad = site.start();
    hydrad.wait_sql(
        &site.db,
        "select count(*) = 100 from Builds where finished = 1",
    );
    // Also what is queued meanwhile; and of the ten only the last word is missing.
    site.queue(&stub_jobs("b", 5, ""));
    hydrad.wait_sql(
        &site.db,
        "select count(*) = 105 from Builds where finished = 1",
    );
    hydrad.wait_sql(
        &site.db,
        "select count(*) = 115 from BuildSteps where status = 0",
    );
    let unfinished = "select count(*) from Builds where finished = 0 and id = any($1)";
    let unfinished: i64 = site
        .db
        .client()
        .query_one(unfinished, &[&held])
        .unwrap()
        .get(0);
    assert_eq!(unfinished, 10);

    transaction.commit().unwrap();
    site.wait_all_finished(&mut hydrad);
    site.assert_complete();
    assert_eq!(
        site.ask::<i64>("select count(*) from Builds where buildStatus = 0"),
        115
    );
    assert_eq!(
        site.ask::<i64>("select count(*) from Builds where isCurrent = 0"),
        10,
        "the evaluation's own change"
    );
}

#[test]
fn a_deletion_not_yet_committed_holds_up_its_own_builds_alone() {
    let site = Site::new(Pg::shared());
    site.machines(&Site::stub("m1", 4, 1, "-"));
    let doomed = site.queue_in("doomed", &stub_jobs("d", 2, ""));
    let others = site.queue(&stub_jobs("o", 30, ""));
    let mut web = site.db.client();
    let mut transaction = web.transaction().unwrap();
    transaction
        .execute("delete from Jobsets where name = 'doomed'", &[])
        .unwrap();
    let mut hydrad = site.start();
    hydrad.wait_sql(
        &site.db,
        "select count(*) = 30 from Builds where finished = 1",
    );
    transaction.commit().unwrap();
    // The slots they had are free again.
    site.queue(&stub_jobs("p", 8, ""));
    hydrad.wait_sql(
        &site.db,
        "select count(*) = 38 from Builds where finished = 1",
    );
    site.assert_complete();
    let left = "select count(*) from Builds where id = any($1)";
    let count = |ids: &[i32]| {
        site.db
            .client()
            .query_one(left, &[&ids])
            .unwrap()
            .get::<_, i64>(0)
    };
    assert_eq!((count(&doomed), count(&others)), (0, 30));
    assert_sane(&hydrad);
}

#[test]
fn builds_deleted_while_their_steps_run_free_their_slots() {
    let site = Site::new(Pg::shared());
    site.machines(&Site::stub("m1", 2, 1, "-"));
    site.stubs.set("m1", &[("seconds", "3600")]);
    let doomed = site.queue_in("doomed", &stub_jobs("d", 2, ""));
    let mut hydrad = site.start();
    hydrad.wait_sql(
        &site.db,
        "select count(*) = 2 from BuildSteps where busy = 30",
    );
    let waiting = site.queue_in("later", &stub_jobs("w", 2, "stubSeconds = \"0\";"));
    let mut client = site.db.client();
    client
        .execute("delete from Builds where id = $1", &[&doomed[0]])
        .unwrap();
    hydrad.wait_sql(
        &site.db,
        &format!("select finished = 1 from Builds where id = {}", waiting[0]),
    );
    client
        .execute("delete from Jobsets where name = 'doomed'", &[])
        .unwrap();
    // Both builds were told to stop: nothing runs for an hour on the machine.
    common::eventually("both connections end", || {
        let ends = site.stubs.events().iter().filter(|e| e.2 == "end").count();
        (ends >= 2).then_some(())
    });
    // A jobset of the same name is another jobset.
    site.queue_in("doomed", &stub_jobs("e", 3, "stubSeconds = \"0\";"));
    site.wait_all_finished(&mut hydrad);
    site.assert_complete();
    assert_eq!(
        site.ask::<i64>("select count(*) from Builds where buildStatus = 0"),
        5
    );
    assert_sane(&hydrad);
}

#[test]
fn a_step_whose_owner_is_deleted_goes_on_for_the_builds_that_still_want_it() {
    let site = Site::new(Pg::shared());
    site.machines(&Site::stub("m1", 1, 1, "-"));
    site.stubs.set("m1", &[("seconds", "3600")]);
    let owner = site.queue_in("one", &stub_jobs("s", 1, ""))[0];
    let other = site.queue_in("two", &stub_jobs("s", 1, ""))[0];
    let mut hydrad = site.start();
    hydrad.wait_sql(
        &site.db,
        "select count(*) = 1 from BuildSteps where busy = 30",
    );
    let started: i32 = site.ask("select build from BuildSteps");
    assert_eq!(started, owner, "the lowest build owns the step");
    site.db
        .client()
        .execute("delete from Builds where id = $1", &[&owner])
        .unwrap();
    // Whether the attempt goes on or a new one begins: the other build gets its result and a row of its own.
    site.stubs.set("m1", &[("seconds", "0.3")]);
    let pid = site
        .stubs
        .events()
        .iter()
        .find(|e| e.2 == "build")
        .unwrap()
        .1;
    // The stub has read its hour already; its end is a machine's fault, which costs nobody a try.
    end_process(pid, libc::SIGKILL);
    hydrad.wait_sql(
        &site.db,
        &format!("select finished = 1 from Builds where id = {other}"),
    );
    site.assert_complete();
    let rows = site.rows(&format!(
        "select build || ' ' || status from BuildSteps where build = {other}"
    ));
    assert_eq!(rows, [format!("{other} 0")]);
    assert_sane(&hydrad);
}

#[test]
fn a_machine_away_for_longer_than_all_tries_fails_no_build() {
    let site = Site::new(Pg::shared());
    site.machines(&Site::stub("m1", 2, 1, "-"));
    site.configure("max_tries = 2\n");
    site.stubs.set("m1", &[("fault", "refuse-in-connect")]);
    site.queue(&stub_jobs("a", 3, ""));
    let mut hydrad = site.start();
    let attempts = "select count(*) >= 6 from BuildSteps where status = 3";
    hydrad.wait_sql(&site.db, attempts);
    // It answers now, but dies in the middle of everything.
    for fault in ["die-in-valid", "die-in-build", "half-in-dump"] {
        site.stubs.set("m1", &[("fault", fault)]);
        let before: i64 = site.ask("select count(*) from BuildSteps where status = 3");
        hydrad.wait_sql(
            &site.db,
            &format!(
                "select count(*) >= {} from BuildSteps where status = 3",
                before + 2
            ),
        );
    }
    assert_eq!(
        site.ask::<i64>("select count(*) from Builds where finished = 1"),
        0
    );
    let messages = site.rows("select distinct errorMsg from BuildSteps where status = 3");
    assert!(
        messages.iter().any(|m| m.contains("Connection refused")),
        "ssh's words are shown: {messages:#?}"
    );
    assert!(
        messages.iter().all(|m| m.contains("m1")),
        "the machine is named: {messages:#?}"
    );

    site.stubs.set("m1", &[]);
    site.wait_all_finished(&mut hydrad);
    site.assert_complete();
    assert_eq!(
        site.ask::<i64>("select count(*) from Builds where buildStatus = 0"),
        3
    );
}

#[test]
fn postgresql_stopped_and_started_under_load_loses_and_fails_nothing() {
    let pg = Pg::start();
    let site = Site::new(&pg);
    site.machines(&Site::stub("m1", 4, 1, "-"));
    site.stubs.set("m1", &[("seconds", "0.05")]);
    site.queue(&stub_jobs("a", 120, ""));
    let mut hydrad = site.start();
    for done in [10, 40, 80] {
        hydrad.wait_sql(
            &site.db,
            &format!("select count(*) >= {done} from Builds where finished = 1"),
        );
        let told = hydrad.log().matches("the database is away").count();
        pg.stop_server();
        let log = hydrad.log_path();
        hydrad.eventually("the writer notices", || {
            let log = std::fs::read_to_string(&log).unwrap();
            (log.matches("the database is away").count() > told).then_some(())
        });
        pg.start_server();
    }
    site.queue(&stub_jobs("b", 5, ""));
    site.wait_all_finished(&mut hydrad);
    site.assert_complete();
    assert_eq!(
        site.ask::<i64>("select count(*) from Builds where buildStatus = 0"),
        125
    );
    assert_eq!(
        site.ask::<i64>("select count(*) from Builds where isCachedBuild = 1"),
        0
    );
    assert_sane(&hydrad);
}
