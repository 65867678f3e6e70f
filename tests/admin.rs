//! What operators do to a running farm: builds restarted, cancelled and bumped, failures cleared, and the options of
//! Hydra's own program. Polling is switched off: everything takes effect by its own event.

mod common;

use std::os::unix::process::CommandExt;
use std::path::Path;

use common::{said, stub_jobs, system, Listener, Pg, Said, Site};
use serde_json::Value;

fn hydrad(site: &Site, args: &[&str]) -> Said {
    said(&mut site.hydrad(args).command())
}

/// The program called by its old name.
fn queue_runner(site: &Site, args: &[&str]) -> Said {
    said(site.hydrad(args).command().arg0("hydra-queue-runner"))
}

fn id(build: i32) -> String {
    build.to_string()
}

fn system_status_row(site: &Site) -> bool {
    site.ask("select exists (select 1 from SystemStatus where what = 'queue-runner')")
}

/// One stub with so many slots, whose builds take their time.
fn slow_site(slots: u32) -> Site {
    let site = Site::new(Pg::shared());
    site.machines(&Site::stub("m1", slots, 1, "-"));
    site.stubs.set("m1", &[("seconds", "3600")]);
    site
}

// ---- the options of Hydra's program

/// Every key that Hydra's C++ queue runner writes while no destination but the local store is in use, and which hydrad
/// has, too. (spec of SystemStatus: the manual, section 12)
const STATUS_KEYS: &[&str] = &[
    "status",
    "time",
    "uptime",
    "pid",
    "nrQueuedBuilds",
    "nrUnfinishedSteps",
    "nrRunnableSteps",
    "nrActiveSteps",
    "nrStepsBuilding",
    "nrStepsCopyingTo",
    "nrStepsWaitingForDownloadSlot",
    "nrStepsCopyingFrom",
    "nrStepsWaiting",
    "nrUnsupportedSteps",
    "bytesSent",
    "bytesReceived",
    "nrBuildsDone",
    "nrStepsStarted",
    "nrStepsDone",
    "nrRetries",
    "maxNrRetries",
    "nrDbConnections",
    "totalStepTime",
    "totalStepBuildTime",
    "avgStepTime",
    "avgStepBuildTime",
    "machines",
    "machineTypes",
    "jobsets",
];

const MACHINE_KEYS: &[&str] = &[
    "enabled",
    "systemTypes",
    "supportedFeatures",
    "mandatoryFeatures",
    "nrStepsDone",
    "currentJobs",
    "disabledUntil",
    "lastFailure",
    "consecutiveFailures",
    "totalStepTime",
    "totalStepBuildTime",
    "avgStepTime",
    "avgStepBuildTime",
];

#[track_caller]
fn has_keys(what: &Value, keys: &[&str]) {
    for key in keys {
        assert!(!what[*key].is_null(), "{key} is missing in {what}");
    }
}

#[test]
fn units_and_scripts_made_for_hydras_program_need_only_the_program_replaced() {
    let site = Site::new(Pg::shared());
    site.machines(&Site::stub("m1", 2, 1, "big"));
    let down = || {
        assert_eq!(
            queue_runner(&site, &["--status"]).ends_with(0).out,
            "{\"status\":\"down\"}\n"
        )
    };
    down();
    assert!(queue_runner(&site, &["--version"])
        .ends_with(0)
        .out
        .contains("0."));
    assert!(queue_runner(&site, &["--help"])
        .ends_with(0)
        .out
        .contains("--unlock"));

    // As the NixOS module starts it, with what people add.
    let start = || {
        let mut running = site
            .hydrad(&[
                "queue-runner",
                "-v",
                "--option",
                "builders",
                "",
                "--option",
                "cores",
                "4",
            ])
            .start();
        running.wait_log("ready: ");
        running
    };
    let mut running = start();
    site.queue(&stub_jobs("done", 2, ""));
    site.wait_all_finished(&mut running);
    // The log says `-v` was understood.
    assert!(running.log().contains("INFO"));

    let text = queue_runner(&site, &["--status"]).ends_with(0).out;
    assert_eq!(text.lines().count(), 1, "{text}");
    let status: Value = serde_json::from_str(&text).unwrap();
    has_keys(&status, STATUS_KEYS);
    has_keys(&status["machines"]["m1"], MACHINE_KEYS);
    assert!(!status["machines"]["m1"]["idleSince"].is_null());
    assert_eq!(
        status["machines"]["m1"]["systemTypes"],
        Value::from(vec![system()])
    );
    let kind = &status["machineTypes"][system()];
    assert_eq!(
        (&kind["runnable"], &kind["running"]),
        (&0.into(), &0.into())
    );
    assert!(
        !kind["lastActive"].is_null() && kind["waitTime"].is_null(),
        "{kind}"
    );

    // While it works nobody unlocks anything.
    queue_runner(&site, &["--unlock"])
        .ends_with(1)
        .complains(&["hydra-queue-runner is currently running"]);

    site.stubs.set("m1", &[("seconds", "3600")]);
    let builds = site.queue(&stub_jobs("slow", 1, ""));
    running.wait_sql(
        &site.db,
        "select count(*) = 1 from BuildSteps where busy = 30",
    );
    running.kill_9();
    let silent = queue_runner(&site, &["--status"]).ends_with(1);
    assert!(silent.out.starts_with('{'), "{}", silent.out);
    silent.complains(&["queue runner did not respond; status information may be wrong"]);
    // --status wins over --unlock.
    queue_runner(&site, &["--unlock", "--status"]).ends_with(1);
    assert!(system_status_row(&site));

    queue_runner(&site, &["--unlock"]).ends_with(0);
    let steps = "select busy, status, s.stopTime is null from BuildSteps s join Builds b on b.id = s.build where b.finished = 0";
    assert_eq!(site.rows(steps), ["0 3 t"]);
    down();

    // A stop in order says itself that nobody is up.
    site.stubs.set("m1", &[("kept", "all")]);
    let mut running = start();
    running.wait_sql(&site.db, "select count(*) = 1 from SystemStatus");
    // What was unlocked is not lost: the machine, asked, has finished it.
    running.wait_log("1 steps that --unlock ended are looked at again");
    site.wait_all_finished(&mut running);
    let adopted = format!("select status, isCachedBuild from Builds b join BuildSteps s on s.build = b.id where b.id = {}", builds[0]);
    assert_eq!(site.rows(&adopted), ["0 0"]);
    assert!(running.terminate().success());
    down();
}

#[test]
fn build_one_builds_that_build_alone_and_exits_by_itself() {
    let site = Site::new(Pg::shared());
    site.machines(&Site::stub("m1", 4, 1, "-"));
    let one = |build: &str| queue_runner(&site, &["--build-one", build]);
    one("x")
        .ends_with(2)
        .complains(&["‘--build-one’ requires a build ID"]);
    one("4711")
        .ends_with(2)
        .complains(&["there is no build 4711"]);

    let others = site.queue(&stub_jobs("other", 3, ""));
    let system = system();
    let chain = format!(
        "let dep = derivation {{ name = \"dep\"; system = \"{system}\"; builder = \"/none\"; }}; in {{
           good = derivation {{ name = \"good\"; system = \"{system}\"; builder = \"/none\"; inherit dep; }};
           bad = derivation {{ name = \"bad\"; system = \"{system}\"; builder = \"/none\"; stubStatus = \"3\"; inherit dep; }}; }}"
    );
    let builds = site.queue(&chain);
    let (bad, good) = (builds[0], builds[1]);
    let said = one(&id(good)).ends_with(0);
    assert!(
        said.out.contains(&format!("build {good}: succeeded")),
        "{}",
        said.out
    );
    let said = one(&id(bad)).ends_with(0);
    assert!(
        said.out.contains(&format!("build {bad}: failed")),
        "{}",
        said.out
    );
    one(&id(good))
        .ends_with(2)
        .complains(&["is not queued", "hydrad build restart"]);

    let waiting = site.rows("select id from Builds where finished = 0 order by id");
    assert_eq!(
        waiting,
        others.iter().map(|id| id.to_string()).collect::<Vec<_>>()
    );
    assert_eq!(
        site.rows("select count(*) from BuildSteps s join Builds b on b.id = s.build where b.finished = 0"),
        ["0"]
    );
}

// ---- builds

#[test]
fn builds_are_cancelled_bumped_and_restarted_by_their_event_alone() {
    let site = slow_site(1);
    let mut running = site.start();
    let heard = Listener::start(
        &site.db,
        &["builds_cancelled", "builds_bumped", "builds_restarted"],
    );
    let builds = site.queue(&stub_jobs("job", 4, ""));
    running.wait_sql(
        &site.db,
        "select count(*) = 1 from BuildSteps where busy = 30",
    );
    let first: i32 = site.ask("select build from BuildSteps where busy = 30");
    assert_eq!(first, builds[0]);

    // The last one goes before the others as soon as the running one is cancelled.
    let last = builds[3];
    let answer = hydrad(&site, &["build", "bump", "--json", &id(last)])
        .ends_with(0)
        .json();
    assert_eq!(
        (&answer["changed"][0], &answer["globalPriority"]),
        (&last.into(), &1.into())
    );
    heard.wait_for("builds_bumped", "");
    running.wait_log(&format!("priority of build {last} increased"));
    hydrad(&site, &["build", "cancel", &id(first)]).ends_with(0);
    heard.wait_for("builds_cancelled", "");
    running.wait_sql(
        &site.db,
        &format!("select count(*) = 1 from BuildSteps where busy = 30 and build = {last}"),
    );
    assert_eq!(
        site.rows(&format!(
            "select finished, buildStatus, isCachedBuild from Builds where id = {first}"
        )),
        ["1 4 0"]
    );

    // What cannot be done is said, and the rest done.
    let mixed = hydrad(&site, &["build", "cancel", &id(first), &id(builds[1])]).ends_with(1);
    assert!(
        mixed
            .out
            .contains(&format!("build {} is cancelled", builds[1])),
        "{}",
        mixed.out
    );
    mixed.complains(&[&format!(
        "build {first} was left alone: it has ended already (cancelled)"
    )]);
    let none = hydrad(&site, &["build", "restart", "--json", &id(last)])
        .ends_with(2)
        .json();
    assert_eq!(none["refused"][0]["id"], last);
    let unknown = hydrad(&site, &["build", "cancel", &id(last), "999999"]).ends_with(2);
    unknown.complains(&["there is no build 999999; nothing was changed"]);
    assert_eq!(
        site.rows(&format!("select finished from Builds where id = {last}")),
        ["0"]
    );
    for nonsense in [
        ["build", "cancel", "x"],
        ["build", "bump", "0"],
        ["build", "show", "-1"],
    ] {
        hydrad(&site, &nonsense).ends_with(2);
    }

    // Restarted while it is over, and cancelled again.
    hydrad(&site, &["build", "cancel", &id(last), &id(builds[2])]).ends_with(0);
    site.wait_all_finished(&mut running);
    hydrad(&site, &["build", "restart", &id(first)]).ends_with(0);
    heard.wait_for("builds_restarted", "");
    running.wait_sql(
        &site.db,
        &format!("select count(*) = 1 from BuildSteps where busy = 30 and build = {first}"),
    );
    let shown = hydrad(&site, &["build", "show", &id(first)])
        .ends_with(0)
        .out;
    for word in [
        "manual:manual:job000",
        "queued for",
        "building",
        "m1",
        "cancelled",
    ] {
        assert!(shown.contains(word), "{word:?} is missing in:\n{shown}");
    }
    hydrad(&site, &["build", "cancel", &id(first)]).ends_with(0);
    site.wait_all_finished(&mut running);
}

#[test]
fn a_restart_forgets_the_failures_it_would_meet_again_and_clear_failed_the_rest() {
    let site = Site::new(Pg::shared());
    site.machines(&Site::stub("m1", 2, 1, "-"));
    let mut running = site.start();
    let system = system();
    let jobs = format!(
        "let bad = n: derivation {{ name = \"bad${{n}}\"; system = \"{system}\"; builder = \"/none\"; }};
             top = n: derivation {{ name = \"top${{n}}\"; system = \"{system}\"; builder = \"/none\"; dep = bad n; }};
         in {{ a = top \"1\"; b = top \"2\"; c = bad \"3\"; }}"
    );
    site.stubs.set("m1", &[("status", "3")]);
    let builds = site.queue(&jobs);
    site.wait_all_finished(&mut running);
    let states = "select id, buildStatus from Builds order by id";
    let is = |states: &[i32; 3]| -> Vec<String> {
        builds
            .iter()
            .zip(states)
            .map(|(id, status)| format!("{id} {status}"))
            .collect()
    };
    assert_eq!(site.rows(states), is(&[2, 2, 1]));
    assert_eq!(site.rows("select count(*) from FailedPaths"), ["3"]);
    let mut client = site.db.client();
    client
        .batch_execute("update JobsetEvals set nrSucceeded = 0")
        .unwrap();

    // The dependency's failure is forgotten, as it is a step of the build, and nothing else.
    site.stubs.set("m1", &[("status", "0")]);
    let answer = hydrad(&site, &["build", "restart", "--json", &id(builds[0])])
        .ends_with(0)
        .json();
    assert_eq!(answer["failuresCleared"], 1);
    site.wait_all_finished(&mut running);
    assert_eq!(site.rows(states), is(&[0, 2, 1]));
    assert_eq!(site.rows("select count(*) from FailedPaths"), ["2"]);
    assert_eq!(
        site.rows("select nrSucceeded is null from JobsetEvals"),
        ["t"]
    );

    // Ages: one failed two days ago, one is of a step nobody knows any more.
    client
        .batch_execute(&format!(
            "update BuildSteps set startTime = startTime - 172800, stopTime = stopTime - 172800 where build = {};
             insert into FailedPaths values ('/nix/store/00000000000000000000000000000000-gone')",
            builds[1]
        ))
        .unwrap();
    let clear = |args: &[&str], code: i32| {
        hydrad(&site, &[&["clear-failed"], args].concat()).ends_with(code)
    };
    for nonsense in [
        &[][..],
        &["--all", "/nix/store/x"],
        &["--older-than", "soon"],
        &["hello"],
    ] {
        clear(nonsense, 2);
    }
    clear(
        &["/nix/store/00000000000000000000000000000000-unknown.drv"],
        2,
    )
    .complains(&["give the output paths"]);
    clear(&["/nix/store/00000000000000000000000000000000-nothing"], 1);
    let before = clear(&["--older-than", "1d", "--dry-run"], 0).out;
    assert!(
        before.contains("bad2") && before.contains("1 recorded failures would be forgotten"),
        "{before}"
    );
    assert!(before.contains("1 more have no age"), "{before}");
    let cleared = clear(&["--older-than", "1d", "--json"], 0).json();
    assert_eq!(cleared["cleared"].as_array().unwrap().len(), 1);
    assert_eq!(site.rows("select count(*) from FailedPaths"), ["2"]);
    let drv: String = site.ask(&format!(
        "select drvPath from Builds where id = {}",
        builds[2]
    ));
    let shown = hydrad(&site, &["build", "show", &id(builds[2])])
        .ends_with(0)
        .out;
    assert!(shown.contains("a failure is recorded"), "{shown}");
    clear(&[&drv], 0);
    assert_eq!(
        site.rows("select path from FailedPaths"),
        ["/nix/store/00000000000000000000000000000000-gone"]
    );
    clear(&["--all"], 0);
    assert_eq!(site.rows("select count(*) from FailedPaths"), ["0"]);

    // Collected: refused, and nothing changed.
    let collected = format!(
        "update Builds set drvPath = replace(drvPath, '-bad3', '-gone3') where id = {}",
        builds[2]
    );
    client.batch_execute(&collected).unwrap();
    hydrad(&site, &["build", "restart", &id(builds[1]), &id(builds[2])])
        .ends_with(2)
        .complains(&[
            "is not in the local store",
            "nothing was changed",
            "--force",
        ]);
    assert_eq!(
        site.rows("select count(*) from Builds where finished = 0"),
        ["0"]
    );
    hydrad(&site, &["build", "restart", "--force", &id(builds[2])]).ends_with(0);
    site.wait_all_finished(&mut running);
    assert_eq!(site.rows(states), is(&[0, 2, 3]));
}

#[test]
fn queue_counts_by_system_and_jobset_and_estimates_from_history() {
    let site = slow_site(2);
    let nothing = hydrad(&site, &["queue"]).ends_with(0).out;
    assert!(nothing.contains("nothing is queued"), "{nothing}");
    let past = site.queue_in("a", &stub_jobs("past", 2, ""));
    // Two builds of a took 100 s of machine time each.
    let history = format!(
        "insert into BuildSteps (build, stepnr, type, drvPath, busy, status, startTime, stopTime, machine, system)
             select id, 1, 0, drvPath, 0, 0, now - 200, now - 100, 'm1', '{0}'
             from Builds, (select extract(epoch from now())::int as now) t where id = any('{{{1},{2}}}');
         update Builds set finished = 1, buildStatus = 0, startTime = 1, stopTime = 2, isCachedBuild = 0
             where id = any('{{{1},{2}}}')",
        system(), past[0], past[1]
    );
    site.db.client().batch_execute(&history).unwrap();
    let alone = hydrad(&site, &["queue", "--json"]).ends_with(0).json();
    assert_eq!(
        (&alone["answered"], &alone["historyBuilds"]),
        (&false.into(), &2.into())
    );

    let mut running = site.start();
    site.queue_in("a", &stub_jobs("a", 3, ""));
    site.queue_in("b", &stub_jobs("b", 2, ""));
    running.wait_sql(
        &site.db,
        "select count(*) = 2 from BuildSteps where busy = 30",
    );
    let said = running.eventually("three runnable steps", || {
        let said = hydrad(&site, &["queue", "--json"]).ends_with(0).json();
        (said["systems"][0]["runnable"] == 3).then_some(said)
    });
    let of = &said["systems"][0];
    assert_eq!(of["system"], system());
    assert_eq!(
        (&of["queued"], &of["running"], &of["slots"]),
        (&5.into(), &2.into(), &2.into())
    );
    // b has no history: as the average of its system. Five builds of 100 s on two slots.
    assert_eq!(
        (&of["workSecs"], &of["expectedSecs"]),
        (&500.0.into(), &250.into())
    );
    let jobsets = said["jobsets"].as_array().unwrap();
    assert_eq!(jobsets.len(), 2);
    assert_eq!(
        (
            &jobsets[0]["jobset"],
            &jobsets[0]["queued"],
            &jobsets[0]["workSecs"]
        ),
        (&"manual:a".into(), &3.into(), &300.0.into())
    );
    let text = hydrad(&site, &["queue"]).ends_with(0).out;
    for word in [
        "manual:a",
        "manual:b",
        "4 min 10 s",
        "2 builds in the last 7 days",
    ] {
        assert!(text.contains(word), "{word:?} is missing in:\n{text}");
    }
}

// ---- caps and emergencies

#[test]
fn a_cap_holds_a_jobset_back_and_a_reload_lifts_it() {
    let site = slow_site(4);
    site.configure("max_running_steps = manual:capped:1\n");
    let mut running = site.start();
    site.queue_in("capped", &stub_jobs("capped", 3, ""));
    site.queue_in("free", &stub_jobs("free", 1, ""));
    let by_jobset = "select count(*) filter (where j.name = 'capped') = {n} and count(*) filter (where j.name = 'free') = 1
        from BuildSteps s join Builds b on b.id = s.build join Jobsets j on j.id = b.jobset_id where s.busy = 30";
    running.wait_sql(&site.db, &by_jobset.replace("{n}", "1"));
    let waiting: i32 = site.ask(
        "select b.id from Builds b join Jobsets j on j.id = b.jobset_id where j.name = 'capped' and b.finished = 0
         and not exists (select 1 from BuildSteps s where s.build = b.id) limit 1",
    );
    let why = hydrad(&site, &["explain", &id(waiting)]).out;
    assert!(
        why.contains("manual:capped") && why.contains("max_running_steps"),
        "{why}"
    );
    site.configure("");
    running.hang_up();
    running.wait_sql(&site.db, &by_jobset.replace("{n}", "3"));
}

#[test]
fn an_emergency_keeps_machines_free_survives_a_kill_and_ends_with_its_build() {
    let site = slow_site(1);
    let mut running = site.start();
    let builds = site.queue(&stub_jobs("job", 3, ""));
    running.wait_sql(
        &site.db,
        "select count(*) = 1 from BuildSteps where busy = 30",
    );
    let [first, other, urgent] = builds[..] else {
        panic!()
    };
    hydrad(
        &site,
        &["build", "bump", "--emergency", "--for", "1h", &id(urgent)],
    )
    .ends_with(0);
    // A later bump does not overtake it.
    hydrad(&site, &["build", "bump", &id(other)]).ends_with(0);
    running.wait_log(&format!(
        "emergency: build {urgent} goes before everything else"
    ));
    running.wait_log(&format!("priority of build {other} increased"));
    let status = hydrad(&site, &["status"]).ends_with(0).out;
    assert!(
        status.contains(&format!("emergency: build {urgent} before everything else")),
        "{status}"
    );
    let why = hydrad(&site, &["explain", &id(other)]).out;
    assert!(
        why.contains("emergency") && why.contains(&id(urgent)),
        "{why}"
    );

    running.kill_9();
    drop(running);
    let mut running = site.start();
    running.wait_log(&format!(
        "emergency: build {urgent} goes before everything else"
    ));
    hydrad(&site, &["build", "cancel", &id(first)]).ends_with(0);
    let only = |build: i32| {
        format!("select count(*) = 1 and min(build) = {build} from BuildSteps where busy = 30")
    };
    // After the start the emergency's event may come after the first turn that places: what ran then goes on.
    running.wait_sql(
        &site.db,
        "select count(*) = 1 from BuildSteps where busy = 30",
    );
    let now: i32 = site.ask("select build from BuildSteps where busy = 30");
    if now != urgent {
        hydrad(&site, &["build", "cancel", &id(now)]).ends_with(0);
    }
    running.wait_sql(&site.db, &only(urgent));
    hydrad(&site, &["build", "cancel", &id(urgent)]).ends_with(0);
    running.wait_log(&format!(
        "the emergency of build {urgent} is over; other steps start again"
    ));
}

#[test]
fn the_machine_types_hook_hears_of_changes_and_its_failure_hurts_nobody() {
    let site = Site::new(Pg::shared());
    site.machines(&Site::stub("m1", 1, 1, "-"));
    let heard = site.folder("hook").join("heard");
    let path = heard.display().to_string();
    // The first time it fails.
    site.configure(&format!(
        "machine_types_hook = \"cat >> {path}; echo >> {path}; test $(wc -l < {path}) -gt 1 || {{ echo not yet >&2; exit 3; }}\"\n"
    ));
    let mut running = site.start();
    running.wait_log("machine_types_hook: it failed (exit code 3): not yet");
    site.stubs.set("m1", &[("seconds", "3600")]);
    let builds = site.queue(&stub_jobs("job", 3, ""));
    let types = running.eventually("the hook should hear of the running step", || {
        let text = std::fs::read_to_string(&heard).unwrap_or_default();
        let last: Value = serde_json::from_str(text.lines().last()?).ok()?;
        (last[system()]["running"] == 1).then(|| last[system()].clone())
    });
    assert_eq!(types["runnable"], 2);
    assert!(
        !types["waitTime"].is_null() && types["lastActive"].is_null(),
        "{types}"
    );
    let ids: Vec<String> = builds.iter().map(|build| id(*build)).collect();
    let mut cancel = vec!["build", "cancel"];
    cancel.extend(ids.iter().map(String::as_str));
    hydrad(&site, &cancel).ends_with(0);
    site.wait_all_finished(&mut running);
}

// ---- under load

#[test]
fn shares_machines_and_deletions_take_effect_at_once_with_hundreds_of_steps_waiting() {
    let site = slow_site(1);
    let a = site.queue_in("a", &stub_jobs("a", 250, ""));
    let b = site.queue_in("b", &stub_jobs("b", 3, ""));
    // Both jobsets have used the machines, b ten times as much.
    let used = format!(
        "insert into BuildSteps (build, stepnr, type, drvPath, busy, status, startTime, stopTime, machine, system)
             select id, 1, 0, drvPath, 0, 3, t - 2000, t - 2000 + secs, 'm1', '{}'
             from (values ({}, 100), ({}, 1000)) as v (build, secs) join Builds on id = build,
                  (select extract(epoch from now())::int as t) as now",
        system(),
        a[249],
        b[2]
    );
    let mut client = site.db.client();
    client.batch_execute(&used).unwrap();
    let mut running = site.start();
    let busy_in = |jobset: &str, machine: &str| {
        format!(
            "select count(*) = 1 from BuildSteps s join Builds b on b.id = s.build join Jobsets j on j.id = b.jobset_id
             where s.busy = 30 and j.name = '{jobset}' and s.machine = '{machine}'"
        )
    };
    running.wait_sql(&site.db, &busy_in("a", "m1"));
    running.wait_log("queue loaded: 253 builds");
    let first: i32 = site.ask("select build from BuildSteps where busy = 30");

    // b gets so large a share that it is next.
    client
        .batch_execute("update Jobsets set schedulingShares = 100000 where name = 'b'")
        .unwrap();
    running.eventually("b should have used less of its share than a", || {
        let status = hydrad(&site, &["status", "--json"]).ends_with(0).json();
        let used = |jobset: &str| status["queueRunner"]["jobsets"][jobset]["shareUsed"].as_f64();
        (used("manual:b")? < used("manual:a")?).then_some(())
    });
    hydrad(&site, &["build", "cancel", &id(first)]).ends_with(0);
    running.wait_sql(&site.db, &busy_in("b", "m1"));

    // A machine is added: it takes the next.
    site.machines(&[Site::stub("m1", 1, 1, "-"), Site::stub("m2", 1, 1, "-")].concat());
    site.stubs.set("m2", &[("seconds", "3600")]);
    running.wait_sql(&site.db, &busy_in("b", "m2"));

    // A deleted build leaves its slot to the next, a deleted jobset to nobody's.
    let deleted = "delete from Builds where id = (select build from BuildSteps where busy = 30 and machine = 'm2')";
    client.batch_execute(deleted).unwrap();
    running.wait_sql(
        &site.db,
        "select count(*) = 2 from BuildSteps where busy = 30",
    );
    client
        .batch_execute("delete from Jobsets where name = 'b'")
        .unwrap();
    running.wait_sql(
        &site.db,
        "select count(*) = 2 from BuildSteps s join Builds b on b.id = s.build join Jobsets j on j.id = b.jobset_id
         where s.busy = 30 and j.name = 'a'",
    );
    client
        .batch_execute("delete from Jobsets where name = 'a'")
        .unwrap();
    running.eventually("nothing should run or wait any more", || {
        let status = hydrad(&site, &["status", "--json"]).ends_with(0).json();
        let runner = &status["queueRunner"];
        (runner["nrActiveSteps"] == 0 && runner["nrUnfinishedSteps"] == 0).then_some(())
    });
}

// ---- GC roots

#[test]
fn roots_are_kept_as_hydras_rules_say_and_the_collector_gets_the_rest() {
    let site = Site::new(Pg::shared());
    let env = site.store.env();
    let state = env.iter().find(|(name, _)| name == "NIX_STATE_DIR");
    let roots = Path::new(&state.expect("a state folder").1).join("gcroots/hydra");
    let roots_line = format!("gc_roots_dir = {}\n", roots.display());
    site.configure(&roots_line);
    site.machines(&Site::localhost(2));
    // Each word is the name of a job and what it does.
    let jobs = |version: u32, jobs: &[(&str, bool)]| {
        let job = |(name, works): &(&str, bool)| {
            let script = if *works {
                "echo $name > $out"
            } else {
                "exit 1"
            };
            format!(
                "  {name} = derivation {{ name = \"{name}-{version}\"; system = \"{}\"; builder = \"/bin/sh\"; \
                 args = [ \"-c\" \"{script}\" ]; }};\n",
                system()
            )
        };
        format!("{{\n{}}}\n", jobs.iter().map(job).collect::<String>())
    };
    let mut hydrad = site.start();
    site.queue(&jobs(
        1,
        &[
            ("dropped", true),
            ("flaky", true),
            ("marked", true),
            ("steady", true),
        ],
    ));
    site.wait_all_finished(&mut hydrad);
    site.queue(&jobs(2, &[("flaky", false), ("steady", true)]));
    site.wait_all_finished(&mut hydrad);
    hydrad.terminate();
    site.queue(&jobs(3, &[("waiting", true)]));
    let sql = "update Jobsets set keepnr = 1; update Builds set keep = 1 where job = 'marked'";
    site.db.client().batch_execute(sql).unwrap();

    let drv = |name: &str| -> String {
        site.ask(&format!(
            "select drvPath from Builds where drvPath like '%-{name}.drv'"
        ))
    };
    let output = |name: &str| -> String {
        site.ask(&format!(
            "select o.path from BuildOutputs o join Builds b on b.id = o.build where b.drvPath like '%-{name}.drv'"
        ))
    };
    let kept = [
        output("flaky-1"),
        output("marked-1"),
        output("steady-2"),
        drv("flaky-2"),
        drv("waiting-3"),
    ];
    let outputs_gone = [output("dropped-1"), output("steady-1")];
    let drvs_gone = [
        drv("dropped-1"),
        drv("flaky-1"),
        drv("marked-1"),
        drv("steady-1"),
        drv("steady-2"),
    ];
    let gone = [&outputs_gone[..], &drvs_gone].concat();
    let names = |paths: &[String]| {
        let base = |path: &String| path.rsplit('/').next().unwrap().to_owned();
        let mut names: Vec<String> = paths.iter().map(base).collect();
        names.sort();
        names
    };
    let listed = || {
        let mut names: Vec<String> = std::fs::read_dir(&roots)
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        names
    };
    let update = |args: &[&str]| said(site.hydrad(args).command().arg0("hydra-update-gc-roots"));
    let all = listed();
    assert!(
        names(&gone).iter().all(|name| all.contains(name)),
        "{all:?}"
    );

    // All of them are young; a dry run changes nothing.
    let young = update(&["--json"]).ends_with(0).json();
    assert_eq!(
        (&young["made"], &young["removed"]),
        (&0.into(), &0.into()),
        "{young}"
    );
    let dry = update(&["--min-age", "0", "--dry-run", "--kept"]).ends_with(0);
    for name in names(&gone) {
        assert!(
            dry.out.contains(&format!("remove  {name}  nothing")),
            "{}",
            dry.out
        );
    }
    for reason in [
        "queued",
        "marked to be kept",
        "in evaluation 2 of manual:manual",
        "the last success of manual:manual:flaky",
    ] {
        assert!(dry.out.contains(reason), "{reason} is not in:\n{}", dry.out);
    }
    assert_eq!(listed(), all);

    // What could not be read to the end is no reason to remove anything.
    let sql =
        "insert into Builds (finished, timestamp, jobset_id, job, drvPath, system, globalPriority)
               select 0, 0, id, 'odd', '/elsewhere/x.drv', 'x', 0 from Jobsets limit 1";
    site.db.client().batch_execute(sql).unwrap();
    update(&["--min-age", "0"])
        .ends_with(2)
        .complains(&["/elsewhere/x.drv"]);
    let sql = "delete from Builds where job = 'odd'";
    site.db.client().batch_execute(sql).unwrap();
    let mut away = site
        .hydrad(&["update-gc-roots", "--min-age", "0"])
        .command();
    away.env("NIX_REMOTE", "unix:///nowhere/socket");
    said(&mut away)
        .ends_with(2)
        .complains(&["nothing was removed"]);
    assert_eq!(listed(), all);

    // Now it does, also makes what is missing, and the real collector agrees.
    std::fs::remove_file(roots.join(&names(&kept[..1])[0])).unwrap();
    let done = update(&["--min-age", "0"]).ends_with(0);
    assert!(
        done.out.contains("kept 5 roots (1 of them new), deleted"),
        "{}",
        done.out
    );
    assert_eq!(listed(), names(&kept));
    site.store.store(&["--gc"]);
    for path in &kept {
        assert!(site.store.is_valid(path), "{path} was collected");
    }
    for path in &outputs_gone {
        assert!(!site.store.is_valid(path), "{path} was kept");
    }
    let again = update(&["--min-age", "0"]).ends_with(0);
    assert!(
        again
            .out
            .contains("kept 5 roots (0 of them new), deleted 0 roots"),
        "{}",
        again.out
    );
}
