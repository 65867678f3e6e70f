//! The operators' commands as they are typed: what they print, how they end, and what they say to try next.

mod common;

use std::process::{Command, Stdio};

use common::{eventually, said, stub_jobs, system, Hydrad, Pg, RunAs, Said, Site, TestDir};
use serde_json::Value;

fn hydrad(site: &Site, args: &[&str]) -> Said {
    said(&mut site.hydrad(args).command())
}

// ---- help

#[test]
fn the_help_of_each_command_tells_its_options_and_what_they_are_for() {
    let help = |args: &[&str]| {
        said(Hydrad::run(args).command().args(["--help"]))
            .ends_with(0)
            .out
    };
    let all = help(&[]);
    let commands: [(&str, &[&str]); 11] = [
        ("run", &["--state", "--beside", "SIGTERM", "SIGHUP"]),
        (
            "queue-runner",
            &[
                "--state",
                "--beside",
                "--status",
                "--unlock",
                "--build-one",
                "--prometheus-address",
            ],
        ),
        ("build", &["show", "restart", "cancel", "bump"]),
        (
            "clear-failed",
            &["--all", "--older-than", "--dry-run", "--json", "Examples"],
        ),
        ("queue", &["--history", "--json", "Examples"]),
        ("init", &["--schema", "--upgrade-to", "--yes", "--json"]),
        ("check", &["--state", "--json", "Exit code"]),
        (
            "enqueue",
            &[
                "--project",
                "--jobset",
                "--attr",
                "--timeout",
                "--max-silent",
                "--priority",
                "--wait",
                "--json",
                "<FILE>",
            ],
        ),
        ("status", &["--json", "--last", "Exit code"]),
        ("log", &["--attempt", "--attempts", "--follow"]),
        ("simulate", &["--"]),
    ];
    for (command, words) in commands {
        let line = all
            .lines()
            .find(|line| line.trim_start().starts_with(command));
        let line = line.unwrap_or_else(|| panic!("{command} is not in:\n{all}"));
        assert!(
            line.trim().len() > command.len() + 10,
            "{command} is not described: {line}"
        );
        let own = help(&[command]);
        for word in words.iter().chain(&["--verbose", "--quiet", "--help"]) {
            assert!(own.contains(word), "{command} --help lacks {word}:\n{own}");
        }
    }
    let unknown = said(Hydrad::run(&["chekc"]).command().stdin(Stdio::null())).ends_with(2);
    unknown.complains(&["chekc", "check"]);
}

// ---- check

#[test]
fn check_tells_what_is_in_effect_and_writes_nothing() {
    let site = Site::new(Pg::shared());
    site.machines(&Site::stub("m1", 3, 2, "big"));
    let counters = "select coalesce(sum(n_tup_ins + n_tup_upd + n_tup_del), 0)::bigint from pg_stat_user_tables";
    let files = || {
        let mut command = Command::new("find");
        common::output_of(command.arg(site.data()).args(["-printf", "%p %T@ %s\n"]))
    };
    // A session's counters are added up before it disappears.
    let written = || {
        let mut client = site.db.client();
        let others = "select count(*) from pg_stat_activity where datname = current_database()
                      and backend_type = 'client backend' and pid <> pg_backend_pid()";
        eventually("all other sessions have ended", || {
            let others: i64 = client.query_one(others, &[]).unwrap().get(0);
            (others == 0).then_some(())
        });
        client.query_one(counters, &[]).unwrap().get::<_, i64>(0)
    };
    let own = "create table counted (n int); insert into counted values (1)";
    site.db.client().batch_execute(own).unwrap();
    let before = written();
    assert_eq!(before, 1, "what is written is counted");
    let files_before = files();

    let report = hydrad(&site, &["check", "--json"]).ends_with(0).json();
    assert_eq!(report["exit_code"], 0);
    let rows = report["rows"].as_array().unwrap();
    let find = |section: &str, what: &str| {
        let row = rows
            .iter()
            .find(|row| row["section"] == section && row["what"] == what);
        row.unwrap_or_else(|| panic!("no row {section}, {what} in {report:#}"))
    };
    for row in rows {
        for key in ["section", "what", "value", "mark", "note"] {
            assert!(row[key].is_string(), "{key} of {row}");
        }
    }
    assert_eq!(find("settings", "retry_interval")["value"], "1");
    let note = find("settings", "retry_interval")["note"].as_str().unwrap();
    assert!(
        note.contains("hydra.conf:"),
        "says where it comes from: {note}"
    );
    let machine = find("machines", "m1")["value"].as_str().unwrap();
    assert!(
        machine.contains("3 slots") && machine.contains("big"),
        "{machine}"
    );
    assert_eq!(find("database", "schema version")["value"], "87");
    assert_eq!(find("store", "trusted")["mark"], "ok");
    for program in ["ssh_program", "nix_store_program", "nix_daemon_program"] {
        assert_eq!(find("programs", program)["mark"], "ok");
    }
    let text = hydrad(&site, &["check"]).ends_with(0).out;
    assert!(
        text.contains("m1") && text.contains("all is well: 0 problems"),
        "{text}"
    );

    assert_eq!(files(), files_before, "no file was made or changed");
    assert_eq!(written(), before, "rows were written");
}

#[test]
fn check_names_each_problem_and_what_to_do() {
    let site = Site::new(Pg::shared());
    let problem = |words: &[&str]| {
        let text = hydrad(&site, &["check"]).ends_with(1).out;
        let line = text
            .lines()
            .filter(|line| line.trim_start().starts_with("problem"))
            .find(|line| words.iter().all(|word| line.contains(word)));
        assert!(line.is_some(), "{words:?} in:\n{text}");
        assert!(text.contains("there are problems"), "{text}");
    };
    problem(&["no machine is listed"]);
    site.machines("m1 x86_64-linux - many\n");
    problem(&["the line is left out", "many"]);
    site.machines(&Site::stub("m1", 1, 1, "-"));
    site.configure("max_tries = none\n");
    problem(&["hydra.conf", "max_tries"]);
    site.configure("<s3backup>\n</s3backup>\nservices = queue-runner notify\n");
    let text = hydrad(&site, &["check"]).ends_with(1).out;
    assert!(text.contains("s3backup"), "{text}");
    site.configure("ssh_program = no-such-ssh\n");
    problem(&[
        "ssh_program",
        "no-such-ssh",
        "not found in PATH",
        "set ssh_program to its full path",
    ]);
    site.configure("");
    // A folder that is a file.
    std::fs::write(site.data().join("build-logs"), "").unwrap();
    problem(&["build logs", "is not a folder"]);
    std::fs::remove_file(site.data().join("build-logs")).unwrap();

    // A database without tables is a problem; one that does not answer is not known to be one.
    let empty = Pg::shared().empty_db();
    let bare = said(&mut site.hydrad(&["check"]).db(&empty).command()).ends_with(1);
    assert!(bare.out.contains("hydrad init"), "{}", bare.out);
    let away = format!("dbi:Pg:dbname=x;host={};user=hydra;", site.data().display());
    let away = said(
        &mut site
            .hydrad(&["check", "--json"])
            .env("HYDRA_DBI", away)
            .command(),
    );
    let away = away.ends_with(2).json();
    assert_eq!(away["exit_code"], 2);
    let row = away["rows"]
        .as_array()
        .unwrap()
        .iter()
        .find(|row| row["mark"] == "cannot check");
    assert!(
        row.unwrap()["note"].as_str().unwrap().contains("/data"),
        "{row:?}"
    );
}

// ---- init

#[test]
fn init_makes_the_tables_once_and_leaves_them_alone_after() {
    let pg = Pg::shared();
    let site = Site::new(pg);
    let empty = pg.empty_db();
    let init = |args: &[&str]| said(&mut site.hydrad(args).db(&empty).command());
    let first = init(&["init"]).ends_with(0).out;
    assert!(
        first.contains("made Hydra's tables at version 87")
            && first.contains("made hydrad's own tables"),
        "{first}"
    );
    let dump = || {
        let columns = "select string_agg(format('%s.%s.%s %s', table_schema, table_name, column_name, data_type), ' ' order by
                       table_schema, table_name, ordinal_position) from information_schema.columns
                       where table_schema in ('public', 'hydrad')";
        empty
            .client()
            .query_one(columns, &[])
            .unwrap()
            .get::<_, String>(0)
    };
    let tables = dump();
    empty
        .client()
        .batch_execute(
            "insert into Users (userName, emailAddress, password) values ('u', 'u@x', '!')",
        )
        .unwrap();
    let second = init(&["init"]).ends_with(0).out;
    assert_eq!(second.matches("left alone").count(), 2, "{second}");
    let json = init(&["init", "--json"]).ends_with(0).json();
    assert_eq!(
        json,
        serde_json::json!({"database": empty.name(), "hydra_tables_created": false, "hydrad_tables_created": false,
            "hydrad_tables_upgraded_from": null, "passwords_rehashed": 0, "upgraded_from": null, "version": 87})
    );
    assert_eq!(dump(), tables);

    // Our own tables as the first hydrad made them.
    let old = "drop schema hydrad cascade; create schema hydrad; create table hydrad.meta (one boolean primary key
               default true check (one), version integer not null, created_at timestamptz not null default now());
               insert into hydrad.meta (version) values (1)";
    empty.client().batch_execute(old).unwrap();
    let refused = said(&mut site.hydrad(&["run"]).db(&empty).command()).ends_with(2);
    assert!(refused.err.contains("run `hydrad init`"), "{}", refused.err);
    let third = init(&["init"]).ends_with(0).out;
    assert!(third.contains("own tables from version 1 to"), "{third}");
    assert_eq!(dump(), tables);
    assert_eq!(
        empty
            .client()
            .query_one("select count(*) from Users", &[])
            .unwrap()
            .get::<_, i64>(0),
        1
    );

    // The older tables, for an older web server; an upgrade asks, and there is nobody to ask.
    let older = pg.empty_db();
    let init = |args: &[&str]| said(site.hydrad(args).db(&older).command().stdin(Stdio::null()));
    let made = init(&["init", "--schema", "85"]).ends_with(0).out;
    assert!(made.contains("version 85"), "{made}");
    init(&["init", "--upgrade-to", "87"])
        .ends_with(2)
        .complains(&["nothing was changed", "--yes"]);
    let version = "select version from SchemaVersion";
    assert_eq!(
        older
            .client()
            .query_one(version, &[])
            .unwrap()
            .get::<_, i32>(0),
        85
    );
    let upgraded = init(&["init", "--upgrade-to", "87", "--yes", "--json"])
        .ends_with(0)
        .json();
    assert_eq!(
        (&upgraded["upgraded_from"], &upgraded["version"]),
        (&Value::from(85), &Value::from(87))
    );
    init(&["init", "--schema", "86"])
        .ends_with(2)
        .complains(&["85", "87"]);
}

// ---- enqueue

#[test]
fn enqueue_queues_jobs_of_a_nix_file_and_waits_for_their_end() {
    let site = Site::new(Pg::shared());
    site.machines(&Site::stub("m1", 2, 1, "-"));
    let system = system();
    let jobs = site.file(
        "project.nix",
        &format!(
            "let job = name: more: derivation ({{ inherit name; system = \"{system}\"; builder = \"/none\"; }} // more);
             in {{ good = job \"good\" {{ }}; sets.inner = job \"inner\" {{ }} // {{ meta = {{ timeout = 77; description = \"d\"; }}; }};
                  bad = job \"bad\" {{ stubStatus = \"3\"; }}; }}"
        ),
    );
    let jobs = jobs.to_str().unwrap();
    let text = hydrad(&site, &["enqueue", "--project", "p", "--jobset", "j", jobs])
        .ends_with(0)
        .out;
    assert_eq!(
        text,
        "build 1  p:j:bad\nbuild 2  p:j:good\nbuild 3  p:j:sets.inner\n"
    );
    assert_eq!(
        site.rows("select b.job, b.timeout, b.maxsilent, b.description from Builds b order by id"),
        [
            "bad 36000 7200 NULL",
            "good 36000 7200 NULL",
            "sets.inner 77 7200 d"
        ]
    );
    assert_eq!(
        site.rows("select enabled from Jobsets"),
        ["0"],
        "no evaluator takes it for its own"
    );

    let mut queue_runner = site.start();
    let wait = |args: &[&str]| hydrad(&site, &[&["enqueue", "--wait"], args].concat());
    let good = wait(&["--json", "-A", "good", "-A", "sets.inner", jobs])
        .ends_with(0)
        .json();
    let builds = good["builds"].as_array().unwrap();
    assert_eq!(builds.len(), 2);
    for build in builds {
        assert_eq!(build["status"], 0);
        assert!(
            build["stop"].as_i64() >= build["start"].as_i64() && build["cached"].is_boolean(),
            "{build}"
        );
    }
    let bad = wait(&[jobs]).ends_with(1);
    assert!(
        bad.out.contains("bad") && bad.out.contains("failed") && bad.err.contains("succeeded"),
        "{}{}",
        bad.out,
        bad.err
    );

    // By derivation, with names that no job may have made fit.
    let drv = site.store.instantiate(&format!(
        "derivation {{ name = \"c++?=x\"; system = \"{system}\"; builder = \"/none\"; }}"
    ));
    let text = hydrad(&site, &["enqueue", "--wait", "--timeout", "5", &drv[0]])
        .ends_with(0)
        .out;
    assert!(
        text.contains("c_____x") || text.contains("c____x"),
        "{text}"
    );

    // A build that is deleted while one waits ends the waiting.
    site.stubs.set("m1", &[("seconds", "3600")]);
    let slow = site.file("slow.nix", &stub_jobs("slow", 1, ""));
    let mut waiting = site
        .hydrad(&["enqueue", "--wait", slow.to_str().unwrap()])
        .start();
    queue_runner.wait_sql(
        &site.db,
        "select count(*) = 1 from BuildSteps where busy = 30",
    );
    site.db
        .client()
        .execute("delete from Builds where finished = 0", &[])
        .unwrap();
    assert_eq!(waiting.wait().code(), Some(1));
    assert!(
        waiting.log().contains("1 builds were deleted meanwhile"),
        "{}",
        waiting.log()
    );
    assert!(queue_runner.terminate().success());
}

#[test]
fn enqueue_says_what_is_wrong_and_queues_nothing() {
    let site = Site::new(Pg::shared());
    let file = |name: &str, text: &str| site.file(name, text).to_str().unwrap().to_owned();
    let good = file("good.nix", &stub_jobs("a", 1, ""));
    let syntax = file("syntax.nix", "{ a = ");
    let half = file(
        "half.nix",
        &stub_jobs("a", 1, "").replace("\n}", "\nb = throw \"no b today\"; }"),
    );
    let none = file("none.nix", "{ a = 1; }");
    let not_drv = file("text.drv", "hello");
    let refuse = |args: &[&str], words: &[&str]| {
        let answer = hydrad(&site, &[&["enqueue"], args].concat())
            .ends_with(2)
            .complains(words);
        assert_eq!(answer.out, "");
        assert!(
            answer.err.starts_with("hydrad: ") || answer.err.starts_with("error: "),
            "{}",
            answer.err
        );
    };
    refuse(
        &[&syntax],
        &["syntax.nix", "cannot be evaluated", "syntax error"],
    );
    refuse(
        &[&half],
        &["nothing was queued", "b: it cannot be evaluated"],
    );
    refuse(&[&none], &["none.nix", "has no derivations"]);
    refuse(
        &["-A", "nothing", &good],
        &["attribute 'nothing' is not there"],
    );
    refuse(
        &["-A", "a000", &not_drv],
        &["--attr chooses from a Nix file"],
    );
    refuse(&[&not_drv], &["text.drv", "is not in the store"]);
    refuse(&["/nowhere/x.nix"], &["/nowhere/x.nix", "No such file"]);
    refuse(&["/nowhere/x.drv"], &["cannot read /nowhere/x.drv"]);
    refuse(
        &[&good, &none],
        &["either derivations (.drv) or one Nix file"],
    );
    refuse(&["--project", "a b", &good], &["'a b' cannot be a project"]);
    refuse(&["--timeout=-1", &good], &["cannot be negative"]);
    refuse(&[], &["<FILE>"]);
    assert_eq!(site.ask::<i64>("select count(*) from Builds"), 0);
    assert_eq!(site.ask::<i64>("select count(*) from JobsetEvals"), 0);

    let away = format!("dbi:Pg:dbname=x;host={};user=hydra;", site.data().display());
    let away = said(
        &mut site
            .hydrad(&["enqueue", &good])
            .env("HYDRA_DBI", away)
            .command(),
    );
    away.ends_with(2)
        .complains(&["data", "is PostgreSQL running"]);
    let bare = said(
        &mut site
            .hydrad(&["enqueue", &good])
            .db(&Pg::shared().empty_db())
            .command(),
    );
    bare.ends_with(2).complains(&["hydrad init"]);
}

// ---- status

#[test]
fn status_shows_the_running_queue_runner_and_fails_without_one() {
    let site = Site::new(Pg::shared());
    // The second one takes only what asks for it, and is set aside for long.
    let gone = Site::stub("gone", 1, 1, "gone").replace("gone -", "gone gone");
    site.machines(&[Site::stub("m1", 1, 1, "-"), gone].concat());
    site.configure("retry_interval = 3600\n");
    site.queue(&stub_jobs("done", 2, ""));
    let alone = hydrad(&site, &["status"]).ends_with(1).out;
    assert!(
        alone.contains("does not answer: is it running? (2 builds are queued)"),
        "{alone}"
    );
    let alone = hydrad(&site, &["status", "--json"]).ends_with(1).json();
    assert_eq!(
        (&alone["answered"], &alone["unfinishedBuilds"]),
        (&Value::from(false), &Value::from(2))
    );

    let mut queue_runner = site.start();
    site.wait_all_finished(&mut queue_runner);
    site.stubs.set("m1", &[("seconds", "3600")]);
    site.stubs.set("gone", &[("fault", "refuse-in-connect")]);
    let waiting = site.queue(&stub_jobs("now", 2, ""));
    site.queue(&stub_jobs(
        "lost",
        1,
        "requiredSystemFeatures = [ \"gone\" ];",
    ));
    queue_runner.wait_sql(
        &site.db,
        "select count(*) = 1 from BuildSteps where busy = 30",
    );
    queue_runner.wait_log("will disable machine");

    let text = hydrad(&site, &["status"]).ends_with(0).out;
    for word in [
        "queue runner up for",
        "3 builds queued",
        "m1",
        "building",
        "now000",
        "set aside for",
        "Connection refused",
        "succeeded",
    ] {
        assert!(text.contains(word), "{word:?} is missing in:\n{text}");
    }
    let json = hydrad(&site, &["status", "--json", "--last", "1"])
        .ends_with(0)
        .json();
    assert_eq!(
        (&json["answered"], &json["unfinishedBuilds"]),
        (&Value::from(true), &Value::from(3))
    );
    let running = json["runningSteps"].as_array().unwrap();
    assert_eq!(running[0]["build"], waiting[0]);
    assert_eq!(
        (&running[0]["phase"], &running[0]["machine"]),
        (&Value::from("building"), &Value::from("m1"))
    );
    assert_eq!(json["lastBuilds"].as_array().unwrap().len(), 1);
    assert_eq!(json["queueRunner"]["status"], "up");
    assert_eq!(json["queueRunner"]["machines"]["m1"]["currentJobs"], 1);

    queue_runner.kill_9();
    hydrad(&site, &["status"]).ends_with(1);
    let away = format!("dbi:Pg:dbname=x;host={};user=hydra;", site.data().display());
    let away = said(&mut site.hydrad(&["status"]).env("HYDRA_DBI", away).command());
    away.ends_with(2).complains(&["is PostgreSQL running"]);
}

// ---- log

#[test]
fn log_prints_every_attempt_by_build_or_derivation_and_follows_a_growing_one() {
    let site = Site::new(Pg::shared());
    site.machines(&Site::stub("m1", 1, 1, "-"));
    // Two attempts end as a transient failure, the third succeeds.
    site.stubs.set("m1", &[("lines", "1"), ("status", "6")]);
    let build = site.queue(&stub_jobs("tried", 1, ""))[0];
    let drv: String = site.ask("select drvPath from Builds");
    hydrad(&site, &["log", &build.to_string()])
        .ends_with(2)
        .complains(&["there is no log of", "was not built here"]);
    let mut queue_runner = site.start();
    queue_runner.wait_sql(
        &site.db,
        "select count(*) = 1 from BuildSteps where status = 1",
    );
    site.stubs.set("m1", &[("lines", "2"), ("status", "6")]);
    queue_runner.wait_sql(
        &site.db,
        "select count(*) = 2 from BuildSteps where status = 1",
    );
    site.stubs.set("m1", &[("lines", "3")]);
    site.wait_all_finished(&mut queue_runner);

    let log = |args: &[&str]| hydrad(&site, &[&["log"], args].concat());
    let lines = |count: usize| {
        (1..=count)
            .map(|n| format!("stub line {n} of {drv}\n"))
            .collect::<String>()
    };
    let id = build.to_string();
    let base = drv.rsplit('/').next().unwrap();
    for what in [id.as_str(), drv.as_str(), base] {
        assert_eq!(log(&[what]).ends_with(0).out, lines(3), "{what}");
    }
    let attempts = log(&[&id, "--attempts"]).ends_with(0).out;
    let attempts: Vec<(&str, &str)> = attempts
        .lines()
        .map(|line| line.split_once("  ").unwrap())
        .collect();
    assert_eq!(
        attempts.iter().map(|a| a.0).collect::<Vec<_>>(),
        ["1", "2", "3"]
    );
    assert!(
        attempts.iter().all(|a| std::path::Path::new(a.1).is_file()),
        "{attempts:?}"
    );
    for n in 1..=3 {
        assert_eq!(
            log(&[&id, "--attempt", &n.to_string()]).ends_with(0).out,
            lines(n)
        );
    }
    log(&[&id, "--attempt", "4"])
        .ends_with(2)
        .complains(&["only 3 attempts", "--attempts lists them"]);
    log(&["999"])
        .ends_with(2)
        .complains(&["there is no build 999"]);
    log(&["nonsense"])
        .ends_with(2)
        .complains(&["neither a build's number nor a derivation"]);

    // Compressed by a notifier.
    let plain = attempts[2].1;
    common::output_of(Command::new("bzip2").arg(plain));
    assert_eq!(log(&[&id]).ends_with(0).out, lines(3), "a compressed log");

    // Waiting before the step has begun, printing while it grows, ending with it.
    let gate = site.folder("gate");
    site.machines(&Site::localhost(1));
    queue_runner.hang_up();
    queue_runner.wait_log("adding machine 'localhost'");
    assert!(queue_runner.terminate().success());
    let growing = site.queue(&format!(
        "{{ growing = derivation {{ name = \"growing\"; system = builtins.currentSystem; builder = \"/bin/sh\"; PATH = \"/usr/bin:/bin\";
           args = [ \"-c\" \"echo first; until test -e {0}/open; do sleep 0.01; done; echo last; echo x > $out\" ]; }}; }}",
        gate.display()
    ))[0];
    let mut follower = site
        .hydrad(&["log", "--follow", &growing.to_string()])
        .start();
    follower.wait_log("waiting for ");
    let mut queue_runner = site.start();
    follower.wait_log("first");
    assert!(!follower.log().contains("last"));
    std::fs::write(gate.join("open"), "").unwrap();
    assert!(follower.wait().success());
    assert!(
        follower.log().ends_with("first\nlast\n"),
        "{}",
        follower.log()
    );
    site.wait_all_finished(&mut queue_runner);
    let whole = hydrad(&site, &["log", "--follow", &growing.to_string()]).ends_with(0);
    assert_eq!(whole.out, "first\nlast\n", "of a step that has ended");
}

// ---- run --state

#[test]
fn run_with_a_state_folder_needs_nothing_else_and_survives_a_kill() {
    let site = Site::new(Pg::shared());
    let dir = TestDir::new(RunAs::Unprivileged);
    let state = dir.join("state");
    let at = state.to_str().unwrap().to_owned();
    let command = |args: &[&str]| {
        site.hydrad(&[args, &["--state", &at]].concat())
            .without("HYDRA_DBI")
            .without("HYDRA_DATA")
    };
    let conf = |text: &str| {
        std::fs::create_dir_all(&state).unwrap();
        RunAs::Unprivileged.give(&state);
        std::fs::write(state.join("hydra.conf"), format!("queue_runner_metrics_address = none\nstatus_address = none\ngc_roots_dir = {at}/gcroots\n{text}")).unwrap();
    };
    site.machines(&Site::stub("m1", 1, 1, "-"));
    let jobs = |name: &str| {
        site.file(&format!("{name}.nix"), &stub_jobs(name, 1, ""))
            .to_str()
            .unwrap()
            .to_owned()
    };
    said(&mut command(&["enqueue", &jobs("early")]).command())
        .ends_with(2)
        .complains(&["no hydrad works in", "hydrad run --state"]);

    conf("");
    let mut first = command(&["run"]).start();
    first.wait_log("ready: ");
    let built = said(&mut command(&["enqueue", "--wait", "--json", &jobs("one")]).command())
        .ends_with(0)
        .json();
    assert_eq!(built["builds"][0]["status"], 0);
    said(&mut command(&["run"]).command())
        .ends_with(2)
        .complains(&[&at]);
    let check = said(&mut command(&["check"]).command()).ends_with(0).out;
    assert!(check.contains("--state"), "{check}");
    assert!(first.terminate().success());
    assert!(
        !state.join("postgres/postmaster.pid").exists(),
        "its PostgreSQL has stopped"
    );

    let mut second = command(&["run"]).start();
    second.wait_log("ready: ");
    site.stubs.set("m1", &[("seconds", "3600")]);
    said(&mut command(&["enqueue", &jobs("two")]).command()).ends_with(0);
    site.stubs.wait_event("m1", "build", "two");
    let pid = std::fs::read_to_string(state.join("postgres/postmaster.pid")).unwrap();
    let postgres: i32 = pid.lines().next().unwrap().parse().unwrap();
    second.kill_9();
    // SAFETY: signal 0 only asks.
    assert_eq!(
        unsafe { libc::kill(postgres, 0) },
        0,
        "the server goes on without hydrad"
    );

    site.stubs.set("m1", &[]);
    let mut third = command(&["run"]).start();
    third.wait_log("ready: ");
    let again = std::fs::read_to_string(state.join("postgres/postmaster.pid")).unwrap();
    assert_eq!(
        again.lines().next(),
        Some(postgres.to_string().as_str()),
        "the same server, adopted"
    );
    let status = eventually("the build that was cut off is built", || {
        let status = said(&mut command(&["status", "--json"]).command())
            .ends_with(0)
            .json();
        (status["unfinishedBuilds"] == 0).then_some(status)
    });
    assert_eq!(status["lastBuilds"].as_array().unwrap().len(), 2);
    assert!(third.terminate().success());
    // SAFETY: signal 0 only asks.
    eventually("the adopted server is stopped", || {
        (unsafe { libc::kill(postgres, 0) } != 0).then_some(())
    });

    // Two databases at once are a mistake.
    let both = said(&mut site.hydrad(&["run", "--state", &at]).command());
    both.ends_with(2).complains(&["--state", "HYDRA_DBI"]);
    conf("database = dbi:Pg:dbname=hydra\n");
    said(&mut command(&["run"]).command())
        .ends_with(2)
        .complains(&["--state", "hydra.conf"]);
}

#[test]
fn run_says_why_it_does_not_start() {
    let site = Site::new(Pg::shared());
    let away = format!("dbi:Pg:dbname=x;host={};user=hydra;", site.data().display());
    let away = said(&mut site.hydrad(&["run"]).env("HYDRA_DBI", away).command());
    away.ends_with(2).complains(&["is PostgreSQL running"]);
    let bare = said(&mut site.hydrad(&["run"]).db(&Pg::shared().empty_db()).command());
    bare.ends_with(2).complains(&["hydrad init"]);
    site.configure("store_uri = nonsense://elsewhere\n");
    hydrad(&site, &["run"]).ends_with(2).complains(&[
        "store_uri = nonsense://elsewhere",
        "nix path-info",
        "open Nix store",
    ]);
    site.configure("max_tries = 0\nsend_timeout = soon\n");
    hydrad(&site, &["run"]).ends_with(2).complains(&[
        "2 settings are wrong",
        "max_tries",
        "send_timeout",
    ]);
    site.configure("store_mode = local\n");
    hydrad(&site, &["run"])
        .ends_with(2)
        .complains(&["store_mode", "store_uri"]);
    site.configure("");
    // Hydra's own queue runner, by the name its unit gives its sessions.
    let mut foreign = site.db.config();
    let _foreign = foreign
        .application_name("hydra-queue-runner")
        .connect(postgres::NoTls)
        .unwrap();
    hydrad(&site, &["run"]).ends_with(2).complains(&[
        "Hydra's own queue runner",
        "stop it first",
        "--beside",
    ]);
    let mut beside = site.hydrad(&["run", "--beside"]).start();
    beside.wait_log("ready: ");
}

/// What a command says on standard error when it cannot do what it is asked for.
fn refusal(site: &Site, args: &[&str]) -> String {
    let output = site.hydrad(args).command().output().expect("start hydrad");
    let words = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(2), "{args:?}: {words}");
    words
}

#[test]
fn enqueue_takes_derivations_of_the_store_by_any_name() {
    let site = Site::new(Pg::shared());
    let drv = site.store.instantiate(&stub_jobs("a", 1, ""))[0].clone();
    let copy = site.file("copy.drv", &std::fs::read_to_string(&drv).unwrap());
    let copy = copy.to_string_lossy();
    let words = refusal(&site, &["enqueue", &copy]);
    assert!(words.contains("is not in the store"), "{words}");
    let link = site.folder("links").join("a.drv");
    std::os::unix::fs::symlink(&drv, &link).unwrap();
    let link = link.to_string_lossy();
    let done = site.hydrad(&["enqueue", &link]).command().status().unwrap();
    assert!(done.success());
    assert_eq!(site.rows("select drvPath from Builds"), [drv]);
}

#[test]
fn log_follow_prints_a_compressed_log() {
    let site = Site::new(Pg::shared());
    site.machines(&Site::stub("m1", 1, 1, "-"));
    let build = site.queue(&stub_jobs("a", 1, ""))[0].to_string();
    let mut hydrad = site.start();
    site.wait_all_finished(&mut hydrad);
    let print = |args: &[&str]| common::output_of(&mut site.hydrad(args).command());
    let attempts = print(&["log", "--attempts", &build]);
    let path = attempts.split_whitespace().last().unwrap();
    let plain = print(&["log", &build]);
    assert!(plain.contains("stub line 1"), "{plain}");
    common::output_of(std::process::Command::new("bzip2").arg(path));
    assert_eq!(print(&["log", &build]), plain);
    assert_eq!(print(&["log", "--follow", &build]), plain);
}
