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
    let errors: Vec<String> = hydrad
        .log()
        .lines()
        .filter(|l| l.contains("ERROR"))
        .map(String::from)
        .collect();
    assert_eq!(errors, [""; 0]);
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
fn a_deletion_taken_back_leaves_no_busy_row_of_an_attempt_that_is_over() {
    let site = Site::new(Pg::shared());
    site.machines(&Site::stub("m1", 1, 1, "-"));
    site.stubs.set("m1", &[("fault", "refuse-in-connect")]);
    site.queue(&stub_jobs("d", 2, ""));
    let mut web = site.db.client();
    let mut transaction = web.transaction().unwrap();
    transaction.execute("delete from Builds", &[]).unwrap();
    // The rows of these attempts cannot be written; their ends come all the same.
    let mut hydrad = site.start();
    hydrad.wait_log_times("performing step", 4);
    transaction.rollback().unwrap();
    site.stubs.set("m1", &[]);
    site.wait_all_finished(&mut hydrad);
    // What belongs to a held row is written half a second after it.
    hydrad.wait_sql(
        &site.db,
        "select not exists (select 1 from BuildSteps where busy <> 0)",
    );
    site.assert_complete();
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
        hydrad.wait_log_times("the database is away", told + 1);
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

#[test]
fn each_session_of_hydrad_may_be_terminated_at_any_time() {
    let site = Site::new(Pg::shared());
    site.machines(&Site::stub("m1", 4, 1, "-"));
    site.stubs.set("m1", &[("seconds", "0.05")]);
    let mut hydrad = site.start();
    let mut admin = site.db.superuser();
    const OURS: &str = "datname = current_database() and application_name = 'hydrad-queue-runner'";
    let kinds = [
        ("lock", "pid in (select pid from pg_locks where locktype = 'advisory')"),
        ("listener", "query ilike 'listen%'"),
        ("pool", "query not ilike 'listen%' and pid not in (select pid from pg_locks where locktype = 'advisory')"),
    ];
    let mut queued = 0;
    for round in 0..3 {
        for (kind, which) in kinds {
            site.queue(&stub_jobs(&format!("{kind}{round}"), 12, ""));
            queued += 12;
            let finished = format!(
                "select count(*) >= {} from Builds where finished = 1",
                queued - 9
            );
            hydrad.wait_sql(&site.db, &finished);
            let sql = format!(
                "select pg_terminate_backend(pid) from pg_stat_activity where {OURS} and {which}"
            );
            let ended =
                hydrad.eventually(&format!("a session of kind {kind} to terminate"), || {
                    let ended = admin.query(&sql, &[]).unwrap().len();
                    (ended > 0).then_some(ended)
                });
            assert!(
                kind == "pool" || ended == 1,
                "{ended} sessions of kind {kind}"
            );
            // What was announced while nobody listened is found.
            site.queue(&stub_jobs(&format!("after-{kind}{round}"), 1, ""));
            queued += 1;
            site.wait_all_finished(&mut hydrad);
        }
    }
    // The lock is held again, by one session.
    let holders = "select count(*) = 1 from pg_locks where locktype = 'advisory' and granted
                   and database = (select oid from pg_database where datname = current_database())";
    hydrad.wait_sql(&site.db, holders);
    site.assert_complete();
    assert_eq!(
        site.ask::<i64>("select count(*) from Builds where buildStatus = 0"),
        queued
    );
    assert_sane(&hydrad);
    assert!(hydrad.terminate().success());
}

#[test]
fn a_second_hydrad_is_refused_by_the_database_and_by_the_lock_file() {
    let site = Site::new(Pg::shared());
    let mut first = site.start();
    let elsewhere = site.folder("elsewhere");
    let refused = |command: common::HydradBuilder| {
        let output = command.command().output().unwrap();
        let text = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(2), "{text}");
        text
    };
    let text = refused(
        site.hydrad(&["run"])
            .env("HYDRA_DATA", elsewhere.to_string_lossy()),
    );
    assert!(
        text.contains(
            "another queue runner works on this database: hydrad-queue-runner (server process "
        ),
        "{text}"
    );
    assert!(text.contains("stop it first"), "{text}");
    let other = Site::new(Pg::shared());
    let text = refused(site.hydrad(&["run"]).db(&other.db));
    assert!(
        text.contains("queue-runner/lock.lock is locked; stop it first"),
        "{text}"
    );

    // The first one has not noticed, and once it is gone another may start at once, from either folder.
    site.machines(&Site::stub("m1", 1, 1, "-"));
    site.queue(&stub_jobs("a", 1, ""));
    site.wait_all_finished(&mut first);
    assert!(first.terminate().success());
    let mut second = site
        .hydrad(&["run"])
        .env("HYDRA_DATA", elsewhere.to_string_lossy())
        .start();
    second.wait_log("ready: ");
    second.kill_9();
    site.start();
}

#[test]
fn a_machines_file_cut_by_a_crash_is_held_back_until_sighup() {
    let site = Site::new(Pg::shared());
    let whole = [
        Site::stub("m1", 1, 1, "one"),
        Site::stub("m2", 1, 1, "two"),
        Site::stub("m3", 1, 1, "three"),
    ]
    .concat();
    site.machines(&whole);
    let mut hydrad = site.start();
    hydrad.wait_log("adding machine 'm3'");
    let on = |feature: &str| format!("requiredSystemFeatures = [ \"{feature}\" ];");
    let half = whole.find("m2").unwrap() + 5;
    std::fs::write(site.machines_path(), &whole[..half]).unwrap();
    let line = hydrad.wait_log("held back");
    assert!(
        line.contains("from 3 machines to ") && line.contains("SIGHUP"),
        "{line}"
    );
    site.queue(&stub_jobs("held", 2, &on("three")));
    site.wait_all_finished(&mut hydrad);

    hydrad.hang_up();
    hydrad.wait_log("removing machine 'm3'");
    site.queue(&stub_jobs("left", 2, &on("one")));
    site.wait_all_finished(&mut hydrad);

    // Empty, as after a crash of an editor that truncates: held back too.
    site.machines(&whole);
    hydrad.wait_log_times("adding machine 'm3'", 2);
    std::fs::write(site.machines_path(), "").unwrap();
    hydrad.wait_log("from 3 machines to 0");
    site.queue(&stub_jobs("empty", 2, &on("three")));
    site.wait_all_finished(&mut hydrad);
    hydrad.hang_up();
    hydrad.wait_log("no build machines are defined");
    // With none left, work waits; with the file back it goes on.
    site.queue(&stub_jobs("waits", 2, &on("two")));
    site.machines(&whole);
    site.wait_all_finished(&mut hydrad);
    site.assert_complete();
    assert_eq!(
        site.ask::<i64>("select count(*) from Builds where buildStatus = 0"),
        8
    );
    assert_sane(&hydrad);
}

#[test]
fn a_machine_added_to_the_file_is_used_without_a_restart() {
    let site = Site::new(Pg::shared());
    site.machines(&Site::stub("m1", 1, 1, "-"));
    site.stubs.set("m1", &[("seconds", "3600")]);
    site.queue(&stub_jobs("a", 2, ""));
    let mut hydrad = site.start();
    site.stubs.wait_event("m1", "build", "a000");
    site.machines(&[Site::stub("m1", 1, 1, "-"), Site::stub("m2", 1, 1, "-")].concat());
    hydrad.wait_sql(
        &site.db,
        "select count(*) = 1 from Builds where finished = 1 and buildStatus = 0",
    );
    let on = site.rows("select machine from BuildSteps where status = 0");
    assert_eq!(on, ["m2"]);
    // A machine taken away gets nothing new; what runs there may go on.
    site.machines(&Site::stub("m2", 1, 1, "-"));
    hydrad.hang_up();
    hydrad.wait_log("removing machine 'm1'");
    site.queue(&stub_jobs("b", 3, ""));
    hydrad.wait_sql(
        &site.db,
        "select count(*) = 4 from Builds where finished = 1",
    );
    assert_eq!(
        site.rows("select distinct machine from BuildSteps where status = 0"),
        ["m2"]
    );
    assert_eq!(
        site.rows("select busy from BuildSteps where machine = 'm1'"),
        ["30"]
    );
}

/// What a frozen builder leads to, by the phase it freezes in: the words of the deadline.
const FROZEN: [(&str, &str); 5] = [
    ("handshake", "waiting for its greeting"),
    ("valid", "asking which inputs it has"),
    ("import", "sending inputs"),
    ("infos", "asking for the outputs"),
    ("dump", "receiving outputs"),
];

#[test]
fn a_builder_that_freezes_in_any_phase_costs_a_deadline_and_not_the_build() {
    let site = Site::new(Pg::shared());
    site.configure(
        "connect_timeout = 1\nhandshake_timeout = 1\nquery_timeout = 1\nsubstitute_timeout = 1\nsend_timeout = 1\n\
         receive_timeout = 1\nshutdown_timeout = 1\n",
    );
    // The fast one is always tried first, if it is not set aside.
    site.machines(
        &[
            Site::stub("slow", 2, 1, "-"),
            Site::stub("fast", 2, 100, "-"),
        ]
        .concat(),
    );
    // So that there is something to send.
    site.stubs.set("all", &[("valid", "imported")]);
    let mut hydrad = site.start();
    for (n, (phase, words)) in FROZEN.into_iter().enumerate() {
        site.stubs.set(
            "fast",
            &[
                ("fault", &format!("freeze-in-{phase}")),
                ("valid", "imported"),
            ],
        );
        let build = site.queue(&stub_jobs(phase, 1, "src = ./jobs.nix;"))[0];
        hydrad.wait_sql(
            &site.db,
            &format!("select finished = 1 from Builds where id = {build}"),
        );
        let steps = site.rows(&format!(
            "select machine, status, coalesce(errorMsg, '') from BuildSteps where build = {build} order by stepnr"
        ));
        assert_eq!(steps.len(), 2, "{phase}: {steps:#?}");
        assert!(
            steps[0].starts_with("fast 3 ") && steps[0].contains(words),
            "{phase}: {steps:#?}"
        );
        assert!(steps[0].contains("no progress for "), "{steps:#?}");
        assert_eq!(steps[1].trim_end(), "slow 0", "{phase}");
        // Both slots are free again: two builds at once that only this machine is offered.
        site.stubs.set("fast", &[("valid", "imported")]);
        site.machines(&Site::stub("fast", 2, 100, "-"));
        hydrad.hang_up();
        site.queue(&stub_jobs(&format!("{phase}-again"), 2, ""));
        site.wait_all_finished(&mut hydrad);
        site.machines(
            &[
                Site::stub("slow", 2, 1, "-"),
                Site::stub("fast", 2, 100, "-"),
            ]
            .concat(),
        );
        hydrad.hang_up();
        hydrad.wait_log_times("adding machine 'slow'", n + 2);
    }
    // Substituting is a favour: without it everything is sent.
    site.stubs.set(
        "fast",
        &[("fault", "freeze-in-substitute"), ("valid", "imported")],
    );
    let build = site.queue(&stub_jobs("substitute", 1, "src = ./jobs.nix;"))[0];
    site.wait_all_finished(&mut hydrad);
    let line = hydrad.wait_log("substituting inputs");
    assert!(line.contains("sending 1 paths instead"), "{line}");
    let steps = format!("select machine, status from BuildSteps where build = {build}");
    assert_eq!(site.rows(&steps), ["fast 0"]);
    site.assert_complete();
    assert_eq!(
        site.ask::<i64>("select count(*) from Builds where buildStatus <> 0"),
        0
    );
    assert_sane(&hydrad);
}

#[test]
fn a_build_on_a_stopped_builder_ends_by_its_own_limits_and_frees_the_slot() {
    let site = Site::new(Pg::shared());
    site.configure("shutdown_timeout = 1\n");
    site.machines(&Site::stub("m1", 1, 1, "-"));
    site.stubs.set("m1", &[("seconds", "3600")]);
    let mut hydrad = site.start();
    let jobs = stub_jobs("silent", 1, "")
        .replace("derivation {", "{ meta.maxSilent = 1; } // derivation {");
    let silent = site.queue(&jobs)[0];
    site.stubs.wait_event("m1", "build", "silent");
    let pid = site
        .stubs
        .events()
        .iter()
        .find(|e| e.2 == "build")
        .unwrap()
        .1;
    end_process(pid, libc::SIGSTOP);
    site.stubs.set("m1", &[]);
    let next = site.queue(&stub_jobs("next", 1, ""))[0];
    site.wait_all_finished(&mut hydrad);
    let status = site.rows("select id, buildStatus from Builds order by id");
    assert_eq!(
        status,
        [format!("{silent} 7"), format!("{next} 0")],
        "timed out, and the next one built"
    );
    // SAFETY: signal 0 only asks.
    let gone = || (unsafe { libc::kill(pid as i32, 0) } != 0).then_some(());
    common::eventually("the stopped process is ended", gone);
    site.assert_complete();
}

#[test]
fn what_a_broken_builder_says_is_told_and_the_build_done_elsewhere() {
    let site = Site::new(Pg::shared());
    site.machines(
        &[
            Site::stub("slow", 1, 1, "-"),
            Site::stub("fast", 1, 100, "-"),
        ]
        .concat(),
    );
    for (n, (knobs, words)) in [
        ([("fault", "garbage-greeting"), ("kib", "0")], "Welcome"),
        ([("fault", "half-in-handshake"), ("kib", "0")], "fast"),
        (
            [("fault", "die-in-build"), ("kib", "0")],
            "the stub dies in build",
        ),
        (
            [("fault", "kill-in-infos"), ("kib", "0")],
            "asking for the outputs",
        ),
        ([("fault", "garbage-in-dump"), ("kib", "0")], "receiving"),
        ([("data", "other"), ("kib", "0")], "hash"),
    ]
    .into_iter()
    .enumerate()
    {
        // Each in a process of its own: the machine is not yet set aside.
        let mut hydrad = site.start();
        site.stubs.set("fast", &knobs);
        let build = site.queue(&stub_jobs(&format!("t{n}"), 1, ""))[0];
        hydrad.wait_sql(
            &site.db,
            &format!("select finished = 1 from Builds where id = {build}"),
        );
        let steps = site.rows(&format!(
            "select machine, status, coalesce(errorMsg, '') from BuildSteps where build = {build} order by stepnr"
        ));
        assert!(
            steps[0].starts_with("fast 3 ") && steps[0].contains(words),
            "{knobs:?}: {steps:#?}"
        );
        assert_eq!(
            steps[1..].iter().map(|s| s.trim_end()).collect::<Vec<_>>(),
            ["slow 0"],
            "{knobs:?}"
        );
        assert!(hydrad.terminate().success());
    }
    site.assert_complete();
}

#[test]
fn a_connection_cut_in_the_middle_of_an_output_leaves_no_half_path() {
    let site = Site::new(Pg::shared());
    site.machines(
        &[
            Site::stub("slow", 1, 1, "-"),
            Site::stub("fast", 1, 100, "-"),
        ]
        .concat(),
    );
    site.stubs.set("fast", &[("fault", "slow-drip")]);
    let build = site.queue(&stub_jobs("cut", 1, "stubKiB = \"64\";"))[0];
    let mut hydrad = site.start();
    site.stubs.wait_event("fast", "dump", "cut");
    hydrad.wait_sql(
        &site.db,
        "select count(*) = 1 from BuildSteps where busy = 40",
    );
    let output: String = site.ask("select path from BuildStepOutputs");
    let pid = site
        .stubs
        .events()
        .iter()
        .find(|e| e.2 == "dump")
        .unwrap()
        .1;
    end_process(pid, libc::SIGKILL);
    site.wait_all_finished(&mut hydrad);
    let steps = site.rows(&format!(
        "select machine, status from BuildSteps where build = {build} order by stepnr"
    ));
    assert_eq!(steps, ["fast 3", "slow 0"]);
    assert!(site.store.is_valid(&output));
    let size = std::fs::metadata(&output).unwrap().len();
    assert_eq!(size, 64 << 10, "the whole output of the second attempt");
    site.assert_complete();
}

#[test]
fn a_log_that_cannot_be_written_is_our_fault_and_fails_no_build() {
    let site = Site::new(Pg::shared());
    site.machines(&Site::stub("m1", 1, 1, "-"));
    // Where the folder of the logs should be is a file.
    std::fs::write(site.data().join("build-logs"), "").unwrap();
    let output = site.hydrad(&["run"]).command().output().unwrap();
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(
        output.status.code() == Some(2) && text.contains("build-logs"),
        "{text}"
    );
    std::fs::remove_file(site.data().join("build-logs")).unwrap();

    let mut hydrad = site.start();
    let drv = {
        let mut drvs = site.store.instantiate(&stub_jobs("a", 1, ""));
        drvs.remove(0)
    };
    let base = drv.rsplit('/').next().unwrap();
    let folder = site.data().join("build-logs").join(&base[..2]);
    std::fs::write(&folder, "").unwrap();
    site.queue(&stub_jobs("a", 1, ""));
    let line = hydrad.wait_log("through a fault of this host");
    assert!(
        line.contains("cannot write the log of") && line.contains(base),
        "{line}"
    );
    hydrad.wait_sql(
        &site.db,
        "select count(*) >= 3 from BuildSteps where status = 3",
    );
    assert_eq!(
        site.ask::<i64>("select count(*) from Builds where finished = 1"),
        0
    );
    let machine = site.ask::<bool>(
        "select bool_and(errorMsg like 'cannot write the log%') from BuildSteps where status = 3",
    );
    assert!(
        machine,
        "{:?}",
        site.rows("select errorMsg from BuildSteps")
    );
    assert!(
        !hydrad.log().contains("will disable machine"),
        "the machine is not to blame"
    );
    std::fs::remove_file(&folder).unwrap();
    site.wait_all_finished(&mut hydrad);
    site.assert_complete();
    assert_eq!(site.ask::<i32>("select buildStatus from Builds"), 0);
}

#[test]
fn a_full_disk_under_the_logs_is_our_fault_and_fails_no_build() {
    let site = Site::new(Pg::shared());
    site.machines(&Site::stub("m1", 1, 1, "-"));
    let logs = site.data().join("build-logs");
    std::fs::create_dir(&logs).unwrap();
    let mut hydrad = site.hydrad(&["run"]).on_tmpfs(&logs, "64k").start();
    hydrad.wait_log("ready: ");
    // A few thousand lines are more than the disk holds.
    site.stubs.set("m1", &[("lines", "3000")]);
    site.queue(&stub_jobs("a", 1, ""));
    let line = hydrad.wait_log("through a fault of this host");
    assert!(
        line.contains("cannot write the log of") && line.contains("No space left on device"),
        "{line}"
    );
    hydrad.wait_sql(
        &site.db,
        "select count(*) >= 2 from BuildSteps where status = 3",
    );
    assert_eq!(
        site.ask::<i64>("select count(*) from Builds where finished = 1"),
        0
    );
    assert!(
        !hydrad.log().contains("will disable machine"),
        "the machine is not to blame"
    );

    // The operator makes room (and the build has less to say, so that it stays).
    site.stubs.set("m1", &[]);
    let seen = std::path::PathBuf::from(format!("/proc/{}/root{}", hydrad.pid(), logs.display()));
    for folder in std::fs::read_dir(&seen).unwrap().flatten() {
        std::fs::remove_dir_all(folder.path()).unwrap();
    }
    site.wait_all_finished(&mut hydrad);
    site.assert_complete();
    assert_eq!(site.ask::<i32>("select buildStatus from Builds"), 0);
}

#[test]
fn sigterm_leaves_running_steps_after_stop_timeout_and_the_next_start_takes_care_of_them() {
    let site = Site::new(Pg::shared());
    site.configure("stop_timeout = 1\n");
    site.machines(
        &[
            Site::localhost(1),
            // Only for what asks for it.
            Site::stub("m1", 1, 1, "away").replace("away -", "away away"),
        ]
        .concat(),
    );
    let gate = site.folder("gate");
    let local = site.queue(&format!(
        "{{ local = derivation {{ name = \"local\"; system = builtins.currentSystem; builder = \"/bin/sh\";
           PATH = \"/usr/bin:/bin\";
           args = [ \"-c\" \"echo waiting; until test -e {0}/open; do sleep 0.01; done; echo built > $out\" ]; }}; }}",
        gate.display()
    ))[0];
    site.stubs.set("m1", &[("seconds", "3600")]);
    let remote = site.queue(&stub_jobs(
        "remote",
        2,
        "requiredSystemFeatures = [ \"away\" ];",
    ));
    let mut hydrad = site.start();
    hydrad.wait_sql(
        &site.db,
        "select count(*) = 2 from BuildSteps where busy = 30",
    );
    let asked = std::time::Instant::now();
    assert!(hydrad.terminate().success());
    assert!(
        asked.elapsed().as_secs() >= 1,
        "running steps get their time"
    );
    let log = hydrad.log();
    assert!(
        log.contains("stopping: 2 steps may run on for 1 s")
            && log.contains("leaving 2 running steps"),
        "{log}"
    );
    assert_eq!(
        site.ask::<i64>("select count(*) from BuildSteps"),
        2,
        "nothing was started while stopping"
    );

    // Meanwhile the local one is finished by somebody.
    std::fs::write(gate.join("open"), "").unwrap();
    let drv: String = site.ask(&format!("select drvPath from Builds where id = {local}"));
    common::eventually("the output is there", || {
        let output = site
            .store
            .command("nix-store")
            .args(["-r", &drv])
            .output()
            .unwrap();
        output.status.success().then_some(())
    });
    site.stubs.set("m1", &[]);
    let mut hydrad = site.start();
    site.wait_all_finished(&mut hydrad);
    site.assert_complete();
    assert_eq!(
        site.rows("select build, status from BuildSteps order by build, stepnr"),
        [
            format!("{local} 0"),
            format!("{} 3", remote[0]),
            format!("{} 0", remote[0]),
            format!("{} 0", remote[1])
        ],
        "one adopted, one aborted and built again, one not started before"
    );
    assert_eq!(
        site.ask::<i64>("select count(*) from Builds where isCachedBuild = 1"),
        0
    );
}

#[test]
fn a_second_sigterm_leaves_at_once() {
    let site = Site::new(Pg::shared());
    site.configure("stop_timeout = 3600\nshutdown_timeout = 1\n");
    site.machines(&Site::stub("m1", 1, 1, "-"));
    site.stubs.set("m1", &[("seconds", "3600")]);
    site.queue(&stub_jobs("a", 1, ""));
    let mut hydrad = site.start();
    hydrad.wait_sql(
        &site.db,
        "select count(*) = 1 from BuildSteps where busy = 30",
    );
    hydrad.signal(libc::SIGTERM);
    hydrad.wait_log("stopping: 1 steps may run on for 3600 s");
    assert!(hydrad.terminate().success());
}

#[test]
fn sighup_applies_new_limits_without_a_restart_and_a_broken_file_changes_nothing() {
    let site = Site::new(Pg::shared());
    site.configure("max_log_size = 200\n");
    site.machines(&Site::stub("m1", 1, 1, "-"));
    site.stubs.set("m1", &[("lines", "20"), ("kib", "8")]);
    let mut hydrad = site.start();
    let status_of = |name: &str, hydrad: &mut Hydrad| {
        let build = site.queue(&stub_jobs(name, 1, ""))[0];
        hydrad.wait_sql(
            &site.db,
            &format!("select finished = 1 from Builds where id = {build}"),
        );
        site.ask::<i32>(&format!(
            "select buildStatus from Builds where id = {build}"
        ))
    };
    assert_eq!(status_of("small-log", &mut hydrad), 10);
    site.configure("max_output_size = 4000\n");
    hydrad.hang_up();
    hydrad.wait_log("settings read again");
    assert_eq!(status_of("small-output", &mut hydrad), 11);
    site.configure("max_output_size = many\n");
    hydrad.hang_up();
    let line = hydrad.wait_log("settings not read again, the old ones stay");
    assert!(
        line.contains("hydra.conf") && line.contains("max_output_size"),
        "{line}"
    );
    // A good file counts from the signal on, not before.
    site.configure("");
    assert_eq!(status_of("still-small", &mut hydrad), 11);
    hydrad.hang_up();
    hydrad.wait_log_times("settings read again", 2);
    assert_eq!(status_of("no-limits", &mut hydrad), 0);
    site.assert_complete();
}

#[test]
fn sigterm_while_postgresql_is_away_does_not_wait_for_it() {
    let pg = Pg::start();
    let site = Site::new(&pg);
    site.configure("stop_timeout = 1\n");
    site.machines(&Site::stub("m1", 4, 1, "-"));
    site.stubs.set("m1", &[("seconds", "0.05")]);
    site.queue(&stub_jobs("a", 60, ""));
    let mut hydrad = site.start();
    hydrad.wait_sql(
        &site.db,
        "select count(*) >= 10 from Builds where finished = 1",
    );
    pg.stop_server();
    hydrad.wait_log("the database is away");
    assert!(hydrad.terminate().success());
    assert!(hydrad.log().contains("unwritten"), "{}", hydrad.log());
    pg.start_server();
    let mut hydrad = site.start();
    site.wait_all_finished(&mut hydrad);
    site.assert_complete();
    assert_sane(&hydrad);
}

#[test]
fn a_postgresql_without_room_loses_no_record() {
    let site = Site::new(Pg::shared());
    site.machines(&Site::stub("m1", 2, 1, "-"));
    let full = "create function no_room() returns trigger language plpgsql as $$
        begin raise exception 'could not extend file: No space left on device' using errcode = '53100'; end $$;
        create trigger NoRoom before update on Builds
            for each row when (old.finished = 0 and new.finished = 1) execute function no_room();";
    site.db.client().batch_execute(full).unwrap();
    site.queue(&stub_jobs("a", 6, ""));
    let mut hydrad = site.start();
    hydrad.wait_log("the database is away: could not extend file");
    site.db
        .client()
        .batch_execute("drop trigger NoRoom on Builds")
        .unwrap();
    site.wait_all_finished(&mut hydrad);
    site.assert_complete();
    assert_sane(&hydrad);
}

#[test]
fn an_attempt_that_fails_while_its_row_is_held_up_leaves_no_busy_row() {
    let site = Site::new(Pg::shared());
    site.machines(&Site::stub("m1", 1, 1, "-"));
    let build = site.queue(&stub_jobs("a", 1, ""))[0];
    let mut web = site.db.client();
    let mut transaction = web.transaction().unwrap();
    transaction
        .execute("select 1 from Builds where id = $1 for update", &[&build])
        .unwrap();
    site.stubs.set("m1", &[("fault", "refuse-in-connect@1")]);
    let mut hydrad = site.start();
    site.stubs.wait_event("m1", "fault", "");
    // Its end has reached the writer when the next attempt begins.
    hydrad.wait_log_times("performing step", 2);
    transaction.rollback().unwrap();
    site.wait_all_finished(&mut hydrad);

    // Each attempt has its row in the end, whichever came first, and none stays busy.
    hydrad.wait_sql(
        &site.db,
        "select count(*) = 2 and count(*) filter (where busy = 0 and status = 3) = 1 from BuildSteps",
    );
    site.assert_complete();
    assert_sane(&hydrad);
}

#[test]
fn a_row_that_stays_held_does_not_keep_a_slot_for_ever() {
    let site = Site::new(Pg::shared());
    site.machines(&Site::stub("m1", 1, 1, "-"));
    site.configure("row_timeout = 1\nretry_interval = 1\n");
    let held = site.queue(&stub_jobs("a", 1, ""))[0];
    let mut web = site.db.client();
    let mut transaction = web.transaction().unwrap();
    transaction
        .execute("select 1 from Builds where id = $1 for update", &[&held])
        .unwrap();
    let mut hydrad = site.start();
    hydrad.wait_log("performing step");
    // The only slot waits for the row of the first build.
    let free = site.queue(&stub_jobs("b", 1, ""))[0];
    let is_done = |id: i32| format!("select finished = 1 from Builds where id = {id}");
    hydrad.wait_sql(&site.db, &is_done(free));
    hydrad.wait_log(&format!(
        "the row of the step could not be written for 1 s: the database is away, or somebody holds the row of build {held}"
    ));
    assert!(!site.ask::<bool>(&is_done(held)));
    transaction.rollback().unwrap();
    site.wait_all_finished(&mut hydrad);
    hydrad.wait_sql(
        &site.db,
        "select not exists (select 1 from BuildSteps where busy <> 0)",
    );
    site.assert_complete();
    assert_sane(&hydrad);
}

#[test]
fn a_machine_with_a_wrong_clock_takes_as_long_as_it_takes() {
    let site = Site::new(Pg::shared());
    site.machines(&Site::stub("m1", 1, 1, "-"));
    site.stubs
        .set("m1", &[("clock", "86400"), ("seconds", "0.1")]);
    site.queue(&stub_jobs("a", 1, ""));
    let mut hydrad = site.start();
    site.wait_all_finished(&mut hydrad);
    site.assert_complete();
    let now = "extract(epoch from now())";
    let right = format!("select count(*) = 2 from (select startTime t from Builds union all select startTime from BuildSteps) s where abs({now} - t) < 120");
    assert!(site.ask::<bool>(&right));
}
