//! The behaviours the project was asked for, as a user of a running hydrad sees them. Each test carries the number of
//! its behaviour. Polling is off everywhere: what happens, happens by the event alone.

mod common;

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::io::{BufRead, BufReader, Read, Write};
use std::path::PathBuf;
use std::process::{Child, ChildStdout, Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};
use std::sync::{Arc, Barrier};
use std::time::Duration;

use common::{
    eventually, has_program, Db, Event, Farm, Gate, Hydrad, NixStore, RunAs, SshConfig, Sshd,
    StubBuilders, TestDir,
};
use postgres::fallible_iterator::FallibleIterator;
use postgres::Client;

/// What the documentation of the notifications lists, as far as the queue is concerned.
const CHANNELS: [&str; 6] = [
    "build_queued",
    "builds_added",
    "build_started",
    "step_started",
    "step_finished",
    "build_finished",
];

/// `mk NAME ATTRIBUTES SCRIPT`
const MK: &str = r#"
let mk = name: attrs: script: derivation ({
      inherit name; system = builtins.currentSystem; builder = "/bin/sh"; args = [ "-c" script ]; PATH = "/usr/bin:/bin";
    } // attrs);
    list = count: make: builtins.genList (n: make (toString (n + 1))) count;
in "#;

/// The system type of this host, for machines files.
fn system() -> String {
    format!("{}-linux", std::env::consts::ARCH)
}

fn event(channel: &str, payload: impl Into<String>) -> Event {
    Event {
        channel: channel.into(),
        payload: payload.into(),
    }
}

fn drvs(store: &NixStore, expression: &str) -> Vec<String> {
    store.instantiate(&format!("{MK}{expression}"))
}

fn enqueue(farm: &Farm, drvs: &[String]) -> Vec<i32> {
    farm.enqueue(&drvs.iter().map(String::as_str).collect::<Vec<_>>())
}

// ---- S1: notifications travel through PostgreSQL

/// psql as an operator uses it. It shows what it heard after each command.
struct Psql {
    child: Child,
    output: BufReader<ChildStdout>,
}

impl Psql {
    fn listen(db: &Db) -> Psql {
        let mut command = RunAs::Me.command("psql");
        command.args(["-X", "-q", "-U", "hydra", "-d", db.name(), "-h"]);
        command.arg(db.socket_dir());
        command.stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = command.spawn().expect("start psql");
        let output = BufReader::new(child.stdout.take().expect("psql's output is a pipe"));
        let mut psql = Psql { child, output };
        let listens: String = CHANNELS
            .map(|channel| format!("listen {channel};\n"))
            .concat();
        psql.say(&format!("{listens}\\echo ready\n"));
        let mut line = String::new();
        psql.output
            .read_line(&mut line)
            .expect("psql should answer");
        assert_eq!(line, "ready\n");
        psql
    }

    fn say(&mut self, text: &str) {
        let stdin = self.child.stdin.as_mut().expect("psql's input is a pipe");
        stdin.write_all(text.as_bytes()).expect("psql should read");
    }

    /// Everything it heard since it began to listen.
    fn heard(mut self) -> Vec<Event> {
        self.say("select 1;\n\\q\n");
        let lines = self.output.by_ref().lines().map(|line| line.expect("text"));
        let heard = lines.filter_map(|line| {
            let rest = line.strip_prefix("Asynchronous notification \"")?;
            let (channel, rest) = rest.split_once("\" with payload \"")?;
            let (payload, _) = rest.split_once("\" received from server process")?;
            Some(event(channel, payload))
        });
        let heard = heard.collect();
        assert!(self.child.wait().expect("wait for psql").success());
        heard
    }
}

#[test]
fn s1_any_client_sees_the_documented_channels_payloads_and_order_of_a_success() {
    let store = NixStore::owned_by(RunAs::Unprivileged);
    let farm = Farm::new(&store).with_machines(&format!("localhost {} - 1 1 - -\n", system()));
    let mut hydrad = farm.run(&[]);
    let heard = farm.db.listen(&CHANNELS);
    let psql = has_program("psql").then(|| Psql::listen(&farm.db));

    let drv = drvs(&store, r#"mk "hello" { } "echo hello; echo hello > $out""#);
    let build = enqueue(&farm, &drv)[0];
    farm.wait_ended(&mut hydrad, &[build]);
    heard.wait_for("build_finished", &build.to_string());

    let log = farm.log_path(&drv[0]).display().to_string();
    let expected = [
        event("build_queued", format!("{build}")),
        event("builds_added", format!("{build}")),
        event("build_started", format!("{build}")),
        event("step_started", format!("{build}\t1")),
        event("step_finished", format!("{build}\t1\t{log}")),
        event("build_finished", format!("{build}")),
    ];
    assert_eq!(heard.events(), expected);
    assert_eq!(std::fs::read_to_string(log).unwrap(), "hello\n");
    if let Some(psql) = psql {
        assert_eq!(psql.heard(), expected, "as psql sees it");
    }
}

#[test]
fn s1_a_shared_failure_is_announced_once_with_all_that_depend_on_it() {
    let store = NixStore::owned_by(RunAs::Unprivileged);
    let farm = Farm::new(&store).with_machines(&format!("localhost {} - 4 1 - -\n", system()));
    let drvs = drvs(
        &store,
        r#"let bad = mk "bad" { } "exit 1"; in list 3 (n: mk "top-${n}" { inherit bad; } "echo > $out")"#,
    );
    let heard = farm.db.listen(&CHANNELS);
    let builds = enqueue(&farm, &drvs);
    let mut hydrad = farm.run(&[]);
    farm.wait_ended(&mut hydrad, &builds);

    let [first, second, third] = builds[..] else {
        unreachable!("three builds were queued")
    };
    let finished = format!("{first}\t{second}\t{third}");
    heard.wait_for("build_finished", &finished);
    let bad: String = farm
        .client()
        .query_one("select drvPath from BuildSteps where build = $1", &[&first])
        .unwrap()
        .get(0);
    let expected = [
        event("step_started", format!("{first}\t1")),
        event(
            "step_finished",
            format!("{first}\t1\t{}", farm.log_path(&bad).display()),
        ),
        event("build_finished", finished),
    ];
    let events = heard.events();
    let from = events.iter().position(|e| e.channel == "step_started");
    assert_eq!(events[from.unwrap()..], expected, "and nothing else");
    assert_eq!(farm.statuses(&builds), [Some(2); 3]);
}

#[test]
fn s1_each_attempt_is_announced_with_its_own_log() {
    let store = NixStore::owned_by(RunAs::Unprivileged);
    let stubs = StubBuilders::new(store.owner());
    stubs.set("all", &[("status", "6")]);
    let farm = Farm::new(&store)
        .with_machines(&stubs.machines(1, 1))
        .with_conf("retry_interval = 1\n");
    let mut hydrad = farm.run(&stubs.env());
    let heard = farm.db.listen(&CHANNELS[2..]);
    let drv = drvs(&store, r#"mk "flaky" { } "never run""#);
    let build = enqueue(&farm, &drv)[0];
    heard.wait("the end of the first attempt", |events| {
        events
            .iter()
            .any(|e| e.channel == "step_finished")
            .then_some(())
    });
    stubs.set("all", &[]);
    farm.wait_ended(&mut hydrad, &[build]);
    heard.wait_for("build_finished", &build.to_string());

    let log = farm.log_path(&drv[0]).display().to_string();
    let expected = [
        event("build_started", format!("{build}")),
        event("step_started", format!("{build}\t1")),
        event("step_finished", format!("{build}\t1\t{log}.attempt-1")),
        event("build_started", format!("{build}")),
        event("step_started", format!("{build}\t2")),
        event("step_finished", format!("{build}\t2\t{log}")),
        event("build_finished", format!("{build}")),
    ];
    assert_eq!(heard.events(), expected);
    for path in [format!("{log}.attempt-1"), log] {
        let text = std::fs::read_to_string(&path).unwrap();
        assert_eq!(text, format!("stub line 1 of {}\n", drv[0]), "{path}");
    }
}

#[test]
fn s1_a_finished_step_without_a_log_still_has_three_fields() {
    let store = NixStore::owned_by(RunAs::Unprivileged);
    let stubs = StubBuilders::new(store.owner());
    stubs.set("m1", &[("fault", "refuse-in-connect")]);
    let farm = Farm::new(&store).with_machines(&stubs.machines(1, 1));
    let _hydrad = farm.run(&stubs.env());
    let heard = farm.db.listen(&["step_finished"]);
    let build = enqueue(&farm, &drvs(&store, r#"mk "unlucky" { } "never run""#))[0];
    heard.wait_for("step_finished", &format!("{build}\t1\t-"));
}

#[test]
fn s1_more_dependents_than_a_payload_holds_are_split_and_nobody_is_lost() {
    const DEPENDENTS: usize = 1_200;
    let store = NixStore::owned_by(RunAs::Unprivileged);
    let farm = Farm::new(&store).with_machines(&format!("localhost {} - 1 1 - -\n", system()));
    // Ids as long as they can be: with 11 bytes each, the list would have 13,200 bytes.
    farm.client()
        .batch_execute("alter sequence builds_id_seq restart 2000000000")
        .unwrap();
    let file = store.dir().join("dependents.nix");
    let text = format!(
        "{MK} let bad = mk \"bad\" {{ }} \"exit 1\"; in builtins.listToAttrs (list {DEPENDENTS} (n: {{
          name = \"top-${{n}}\"; value = mk \"top-${{n}}\" {{ inherit bad; type = \"derivation\"; }} \"echo > $out\"; }}))"
    );
    std::fs::write(&file, text).unwrap();
    let heard = farm.db.listen(&CHANNELS[2..]);
    let builds = farm.enqueue(&[file.to_str().unwrap()]);
    assert_eq!(builds.len(), DEPENDENTS);
    let mut hydrad = farm.run(&[]);
    farm.wait_ended(&mut hydrad, &builds);

    let first = builds.iter().min().unwrap();
    let announced = heard.wait("build_finished of all", |events| {
        let payloads: Vec<_> = events
            .iter()
            .filter(|e| e.channel == "build_finished")
            .map(|e| e.payload.clone())
            .collect();
        let ids: usize = payloads.iter().map(|p| p.split('\t').count() - 1).sum();
        (ids + 1 >= DEPENDENTS).then_some(payloads)
    });
    assert!(announced.len() > 1, "it does not fit into one");
    let mut seen = vec![*first];
    for payload in &announced {
        assert!(payload.len() < 8_000, "{} bytes", payload.len());
        let mut ids = payload.split('\t').map(|id| id.parse::<i32>().unwrap());
        assert_eq!(ids.next(), Some(*first), "the first id is repeated");
        seen.extend(ids);
    }
    let expected: Vec<i32> = BTreeSet::from_iter(builds.iter().copied())
        .into_iter()
        .collect();
    seen.sort_unstable();
    assert_eq!(seen, expected, "each once");
    assert_eq!(heard.payloads("step_finished").len(), 1, "one step failed");
    let sql = "select count(*) filter (where propagatedFrom = $1), count(*) filter (where propagatedFrom is null),
                      count(distinct build) from BuildSteps where status = 1";
    let row = farm.client().query_one(sql, &[first]).unwrap();
    let counts = [0, 1, 2].map(|column| row.get::<_, i64>(column));
    let all = DEPENDENTS as i64;
    assert_eq!(
        counts,
        [all - 1, 1, all],
        "every build tells which step failed"
    );
}

#[test]
fn s1_what_a_notification_tells_of_is_there_when_it_arrives() {
    const BUILDS: usize = 60;
    let store = NixStore::owned_by(RunAs::Unprivileged);
    let stubs = StubBuilders::new(store.owner());
    let farm = Farm::new(&store).with_machines(&stubs.machines(3, 4));
    let mut listening = farm.client();
    for channel in CHANNELS {
        listening
            .batch_execute(&format!("listen {channel}"))
            .unwrap();
    }
    let mut hydrad = farm.run(&stubs.env());
    let drvs = drvs(
        &store,
        &format!(
            r#"let bad = mk "bad" {{ stubStatus = "3"; }} ""; in list {BUILDS} (n:
               mk "b-${{n}}" (if builtins.substring 0 1 n == "1" then {{ inherit bad; }} else {{ }}) "")"#
        ),
    );
    let builds = enqueue(&farm, &drvs);
    let mut open: HashSet<i32> = builds.iter().copied().collect();
    let mut asking = farm.client();
    let mut checked = BTreeMap::new();
    while !open.is_empty() {
        let mut notifications = listening.notifications();
        let message = notifications
            .timeout_iter(common::patience())
            .next()
            .unwrap();
        let message = message.unwrap_or_else(|| panic!("never announced: {open:?}"));
        let ids: Vec<i32> = message
            .payload()
            .split('\t')
            .map_while(|field| field.parse().ok())
            .collect();
        let (sql, args) = match message.channel() {
            "step_started" => (
                "select count(*) from BuildSteps where build = $1[1] and stepnr = $1[2] and startTime is not null",
                1,
            ),
            "step_finished" => (
                "select count(*) from BuildSteps where build = $1[1] and stepnr = $1[2] and busy = 0
                 and status is not null and stopTime is not null",
                1,
            ),
            "build_finished" => (
                "select count(*) from Builds where id = any($1) and finished = 1 and buildStatus is not null
                 and notificationPendingSince is not null",
                ids.len(),
            ),
            _ => ("select count(*) from Builds where id = any($1)", ids.len()),
        };
        let sql = sql.replace("$1[", "($1::int[])[");
        let found: i64 = asking.query_one(&sql, &[&ids]).unwrap().get(0);
        assert_eq!(
            found,
            args as i64,
            "{} {:?}",
            message.channel(),
            message.payload()
        );
        if message.channel() == "build_finished" {
            open.retain(|id| !ids.contains(id));
        }
        *checked.entry(message.channel().to_string()).or_insert(0) += 1;
    }
    farm.wait_ended(&mut hydrad, &builds);
    assert_eq!(checked["build_queued"], BUILDS);
    assert_eq!(checked["step_started"], checked["step_finished"]);
    assert!(checked["build_finished"] > 40, "{checked:?}");
}

// ---- S2: an error names the program that was started

fn which(name: &str) -> PathBuf {
    let path = std::env::var_os("PATH").unwrap();
    std::env::split_paths(&path)
        .map(|dir| dir.join(name))
        .find(|file| file.is_file())
        .unwrap_or_else(|| panic!("{name} is not installed"))
}

/// A directory for PATH with these programs and no others.
fn path_with(user: RunAs, programs: &[&str]) -> TestDir {
    let dir = TestDir::new(user);
    for name in programs {
        std::os::unix::fs::symlink(which(name), dir.join(name)).unwrap();
    }
    dir
}

/// The message of the first step of a build, once there is one; the build is still queued then.
fn wait_step_error(farm: &Farm, hydrad: &mut Hydrad, build: i32) -> String {
    let mut client = farm.client();
    let sql =
        "select s.status, s.errorMsg, b.finished from BuildSteps s join Builds b on b.id = s.build
               where s.build = $1 and s.busy = 0 order by s.stepnr limit 1";
    let row = hydrad.eventually("a failed attempt", || {
        client.query_opt(sql, &[&build]).unwrap()
    });
    assert_eq!(row.get::<_, Option<i32>>(0), Some(3), "aborted");
    assert_eq!(row.get::<_, i32>(2), 0, "the build stays queued");
    row.get::<_, Option<String>>(1).expect("a message")
}

/// One derivation for each of these required features.
fn with_features(store: &NixStore, features: &[&str]) -> Vec<String> {
    let list = features.map_quoted();
    drvs(
        store,
        &format!(r#"map (f: mk f {{ requiredSystemFeatures = [ f ]; }} "echo > $out") [ {list} ]"#),
    )
}

trait Quoted {
    fn map_quoted(&self) -> String;
}

impl Quoted for [&str] {
    fn map_quoted(&self) -> String {
        self.iter().map(|word| format!("\"{word}\" ")).collect()
    }
}

/// A machines file in which each name has only the steps that require the feature of that name.
fn machines_by_feature(names: &[&str]) -> String {
    names
        .iter()
        .map(|name| format!("{name} {} - 1 1 - {name}\n", system()))
        .collect()
}

/// Nothing is spoilt by a machine that could not be reached: once it can be, the build is built.
fn wait_built(farm: &Farm, hydrad: &mut Hydrad, builds: &[i32]) {
    farm.wait_ended(hydrad, builds);
    assert!(farm
        .statuses(builds)
        .iter()
        .all(|status| *status == Some(0)));
    let sql = "select count(*) from FailedPaths";
    assert_eq!(
        farm.client().query_one(sql, &[]).unwrap().get::<_, i64>(0),
        0
    );
}

#[test]
fn s2_a_missing_program_is_named_and_the_build_waits_for_it() {
    let names = ["localhost", "elsewhere"];
    let store = NixStore::owned_by(RunAs::Unprivileged).with_features(&names);
    let stubs = StubBuilders::new(store.owner());
    let farm = Farm::new(&store)
        .with_machines(&machines_by_feature(&names))
        .with_conf("retry_interval = 1\n");
    let bin = path_with(RunAs::Me, &["nix-daemon"]);
    let mut env = stubs.env();
    env.push(("PATH".into(), bin.path().display().to_string()));
    let mut hydrad = farm.run(&env);
    let heard = farm.db.listen(&["step_finished"]);

    let drvs = with_features(&store, &names);
    let builds = enqueue(&farm, &drvs);
    for (n, message) in [
        (
            0,
            "cannot connect to 'localhost': cannot start nix-store: No such file or directory",
        ),
        (
            1,
            "cannot connect to 'elsewhere': cannot start ssh: No such file or directory",
        ),
    ] {
        assert_eq!(wait_step_error(&farm, &mut hydrad, builds[n]), message);
        hydrad.wait_log(message);
        heard.wait_for("step_finished", &format!("{}\t1\t-", builds[n]));
    }

    std::os::unix::fs::symlink(which("nix-store"), bin.join("nix-store")).unwrap();
    std::os::unix::fs::symlink(stubs.program(), bin.join("ssh")).unwrap();
    wait_built(&farm, &mut hydrad, &builds);
}

#[test]
fn s2_ssh_and_the_far_side_are_quoted_in_their_own_words() {
    let names = ["refused", "wrong-key", "bare"];
    let store = NixStore::new().with_features(&names);
    let bare_path = path_with(RunAs::Me, &[]);
    let mut far = store.env();
    let healthy = Sshd::start(&far);
    far.push(("PATH".into(), bare_path.path().display().to_string()));
    let (bare, other, gone) = (Sshd::start(&far), Sshd::start(&[]), Sshd::start(&[]));
    let mut config = SshConfig::new(store.owner());
    config
        .add("refused", &gone)
        .add("wrong-key", &other)
        .add("bare", &bare);
    let refused_port = gone.port();
    drop(gone);
    // What answers at the port of `wrong-key` is not the host whose key is known.
    let text = std::fs::read_to_string(config.path()).unwrap();
    let port = |sshd: &Sshd| format!("Port {}\n", sshd.port());
    std::fs::write(config.path(), text.replace(&port(&other), &port(&healthy))).unwrap();

    let farm = Farm::new(&store)
        .with_machines(&machines_by_feature(&names))
        .with_conf("retry_interval = 1\n");
    let mut hydrad = farm.run(&[("NIX_SSHOPTS".into(), config.nix_sshopts())]);
    let builds = enqueue(&farm, &with_features(&store, &names));
    for (n, words) in [
        (
            0,
            format!("ssh: connect to host 127.0.0.1 port {refused_port}: Connection refused"),
        ),
        (1, "Host key verification failed.".into()),
        (2, "nix-store: ".into()),
    ] {
        let message = wait_step_error(&farm, &mut hydrad, builds[n]);
        let begin = format!("cannot connect to '{}': ", names[n]);
        assert!(message.starts_with(&begin), "{message}");
        assert!(message.contains(&words), "{message}");
        assert!(
            !message.contains("cannot start"),
            "ssh did start: {message}"
        );
        hydrad.wait_log(&begin);
        hydrad.wait_log(&words);
    }

    std::os::unix::fs::symlink(which("nix-store"), bare_path.join("nix-store")).unwrap();
    let mut mended = SshConfig::new(store.owner());
    mended
        .add("refused", &healthy)
        .add("wrong-key", &healthy)
        .add("bare", &bare);
    std::fs::copy(mended.path(), config.path()).unwrap();
    wait_built(&farm, &mut hydrad, &builds);
}

// ---- S4: the send lock is held only while sending

/// Derivations with a source of their own, which has to be sent to a machine.
fn with_source(store: &NixStore, names: &[&str]) -> Vec<String> {
    for name in names {
        std::fs::write(store.dir().join(format!("source-{name}")), *name).unwrap();
    }
    let dir = store.dir().path().display();
    drvs(
        store,
        &format!(
            r#"map (n: mk n {{ source = /. + "{dir}/source-${{n}}"; }} "cat $source > $out") [ {} ]"#,
            names.map_quoted()
        ),
    )
}

/// Build this many steps at once on m1, so that all its connections have built something.
fn warm_up(
    farm: &Farm,
    hydrad: &mut Hydrad,
    store: &NixStore,
    stubs: &StubBuilders,
    knobs: &[(&str, &str)],
) {
    let mut gate = Gate::new();
    let gate_path = gate.path().display().to_string();
    stubs.set("m1", &[knobs, &[("gate", &gate_path)]].concat());
    let builds = enqueue(farm, &with_source(store, &["warm-1", "warm-2", "warm-3"]));
    eventually("three builds at once", || {
        (gate.waiting() == 3).then_some(())
    });
    gate.open();
    farm.wait_ended(hydrad, &builds);
    assert_eq!(farm.statuses(&builds), [Some(0); 3]);
    stubs.set("m1", knobs);
}

/// The connections (the stubs' process ids) that have built something.
fn connections_in_use(stubs: &StubBuilders) -> HashSet<u32> {
    let events = stubs.events().into_iter();
    events
        .filter(|(_, _, event, _)| event == "built")
        .map(|(_, pid, ..)| pid)
        .collect()
}

#[test]
fn s4_a_machine_that_hangs_for_one_step_does_not_keep_others_from_sending() {
    for phase in ["substitute", "valid"] {
        let store = NixStore::owned_by(RunAs::Unprivileged);
        let stubs = StubBuilders::new(store.owner());
        let farm = Farm::new(&store)
            .with_machines(&stubs.machines(1, 3))
            .with_conf("retry_interval = 1\n");
        let mut hydrad = farm.run(&stubs.env());
        warm_up(&farm, &mut hydrad, &store, &stubs, &[("valid", "imported")]);
        let used = connections_in_use(&stubs);
        assert_eq!(used.len(), 3);

        let fault = format!("hang-in-{phase}@1");
        stubs.set("m1", &[("valid", "imported"), ("fault", &fault)]);
        let drvs = with_source(&store, &["hanging", "free-1", "free-2"]);
        let hanging = enqueue(&farm, &drvs[..1]);
        stubs.wait_event("m1", "fault", &format!("hang-in-{phase}"));
        let free = enqueue(&farm, &drvs[1..]);
        farm.wait_ended(&mut hydrad, &free);
        assert_eq!(farm.statuses(&free), [Some(0); 2], "{phase}");
        assert_eq!(farm.statuses(&hanging), [None], "{phase}: it still hangs");
        for name in ["source-free-1", "source-free-2"] {
            stubs.wait_event("m1", "import", name);
        }
        let now_used = connections_in_use(&stubs);
        assert_eq!(now_used, used, "{phase}: on connections used before");

        if phase == "valid" {
            continue;
        }
        // The program at the far end dies: a substitution that fails costs nothing, the path is sent.
        let events = stubs.events();
        let (_, pid, ..) = events
            .iter()
            .find(|(_, _, event, _)| event == "fault")
            .unwrap();
        // SAFETY: kill has no memory preconditions; the pid is that of a stub which hangs until it is ended.
        unsafe { libc::kill(*pid as i32, libc::SIGTERM) };
        farm.wait_ended(&mut hydrad, &hanging);
        assert_eq!(farm.statuses(&hanging), [Some(0)], "{phase}");
        stubs.wait_event("m1", "import", "source-hanging");
    }
}

#[test]
fn s4_two_steps_that_need_the_same_large_path_send_it_once() {
    const MARK: &str = "this line of the large source is found once in all that was sent";
    const FREE_READS: usize = 64;
    let store = NixStore::new();
    let far = store.second();
    let stubs = StubBuilders::new(store.owner());
    let taps = TestDir::new(store.owner());
    // Each connection's bytes are recorded. After so many reads, each of 64 KiB at most, it stands still until there is
    // the file `go` (or the test has ended).
    let words: Vec<String> = far
        .prefix()
        .iter()
        .map(|word| format!("'{word}'"))
        .collect();
    let script = format!(
        "tee {taps}/$$ | {{ dd bs=65536 count={FREE_READS} status=none; \
         until test -e {taps}/go || ! test -e {taps}; do sleep 0.02; done; exec cat; }} | {} nix-store --serve --write",
        words.join(" "),
        taps = taps.path().display(),
    );
    stubs.set("m1", &[("exec", &script.replace('\n', " "))]);
    let farm = Farm::new(&store).with_machines(&stubs.machines(1, 2));
    let mut hydrad = farm.run(&stubs.env());

    // Both connections have built something before.
    let meeting = taps.sub("meeting", RunAs::Me);
    std::fs::set_permissions(
        &meeting,
        std::os::unix::fs::PermissionsExt::from_mode(0o777),
    )
    .unwrap();
    let warm = drvs(
        &store,
        &format!(
            r#"list 2 (n: mk "warm-${{n}}" {{ }} "touch {m}/${{n}}; until test -e {m}/1 && test -e {m}/2; do sleep 0.02; done;
               echo > $out")"#,
            m = meeting.display()
        ),
    );
    let warm = enqueue(&farm, &warm);
    farm.wait_ended(&mut hydrad, &warm);
    let connections = std::fs::read_dir(taps.path()).unwrap().count() - 1;

    let large = store.dir().join("large");
    let mut text = format!("{MARK}\n");
    text.extend(
        (0..)
            .map(|n| format!("{n:>63}\n"))
            .take(2 * FREE_READS * 1024),
    );
    std::fs::write(&large, text).unwrap();
    let needing = drvs(
        &store,
        &format!(
            r#"let large = /. + "{}"; in list 2 (n: mk "needs-${{n}}" {{ inherit large; }} "test -s $large && echo > $out")"#,
            large.display()
        ),
    );
    let builds = enqueue(&farm, &needing);
    // In how many lines of each connection's bytes a word stands.
    let found = |word: &str| -> Vec<usize> {
        let mut grep = Command::new("grep");
        grep.args(["-rhac", "--", word]).arg(taps.path());
        let text = String::from_utf8(grep.output().unwrap().stdout).unwrap();
        text.lines().map(|count| count.parse().unwrap()).collect()
    };
    // One step is in the middle of sending the path; the other one has asked for it as well. (It is asked for on both
    // steps' connections, and on the one where the machine may substitute.)
    eventually("one step sends while the other one has asked", || {
        let asked = found("-large").iter().filter(|count| **count > 0).count();
        let mut files = std::fs::read_dir(taps.path()).unwrap().flatten();
        let sending = files.any(|file| file.metadata().unwrap().len() > 100_000);
        (asked >= 3 && sending).then_some(())
    });
    std::fs::write(taps.join("go"), "").unwrap();
    farm.wait_ended(&mut hydrad, &builds);
    assert_eq!(farm.statuses(&builds), [Some(0); 2]);
    assert_eq!(
        found(MARK).iter().sum::<usize>(),
        1,
        "the large path was sent once"
    );
    assert!(connections >= 2, "on connections used before");
}

// ---- S7: builds that become visible out of order are never missed

/// Puts builds into the queue as an evaluator does, without the commit and without the notification.
fn insert_builds(tx: &mut postgres::Transaction<'_>, jobset: i32, drvs: &[String]) -> Vec<i32> {
    let sql = "insert into Builds (finished, timestamp, jobset_id, job, nixName, drvPath, system, maxsilent, timeout,
                                   isChannel, isCurrent, priority)
               select 0, extract(epoch from now())::int, $1, drv, drv, drv, $3, 3600, 36000, 0, 1, 100
               from unnest($2::text[]) drv returning id";
    let rows = tx.query(sql, &[&jobset, &drvs, &system()]).unwrap();
    rows.iter().map(|row| row.get(0)).collect()
}

fn announce_added(tx: &mut postgres::Transaction<'_>, payload: &str) {
    tx.execute("select pg_notify('builds_added', $1)", &[&payload])
        .unwrap();
}

/// A farm of stubs that builds at once, and a jobset of it.
fn quick_farm(store: &NixStore, stubs: &StubBuilders) -> (Farm, Hydrad, i32) {
    let farm = Farm::new(store).with_machines(&stubs.machines(4, 5));
    let mut hydrad = farm.run(&stubs.env());
    let build = enqueue(&farm, &drvs(store, r#"mk "first" { } """#));
    farm.wait_ended(&mut hydrad, &build);
    let sql = "select jobset_id from Builds";
    let jobset = farm.client().query_one(sql, &[]).unwrap().get(0);
    (farm, hydrad, jobset)
}

fn wait_queue_empty(farm: &Farm, hydrad: &mut Hydrad) {
    hydrad.wait_sql(
        &farm.db,
        "select count(*) = 0 from Builds where finished = 0",
    );
    let sql = "select count(*) from Builds where buildStatus <> 0";
    assert_eq!(
        farm.client().query_one(sql, &[]).unwrap().get::<_, i64>(0),
        0
    );
}

#[test]
fn s7_transactions_that_commit_in_reverse_order_of_their_ids_are_all_seen() {
    const THREADS: usize = 3;
    const ROUNDS: usize = 6;
    const EACH: usize = 4;
    let store = NixStore::owned_by(RunAs::Unprivileged);
    let stubs = StubBuilders::new(store.owner());
    let (farm, mut hydrad, jobset) = quick_farm(&store, &stubs);
    let all = drvs(
        &store,
        &format!(
            r#"list {} (n: mk "b-${{n}}" {{ }} "")"#,
            THREADS * ROUNDS * 2 * EACH
        ),
    );
    let highest_early = AtomicI64::new(0);
    let late_below = AtomicI64::new(0);
    std::thread::scope(|scope| {
        for drvs in all.chunks(ROUNDS * 2 * EACH) {
            let (farm, highest_early, late_below) = (&farm, &highest_early, &late_below);
            scope.spawn(move || {
                let (mut low, mut high) = (farm.client(), farm.client());
                for (round, drvs) in drvs.chunks(2 * EACH).enumerate() {
                    let mut low = low.transaction().unwrap();
                    let mut high = high.transaction().unwrap();
                    let low_ids = insert_builds(&mut low, jobset, &drvs[..EACH]);
                    let high_ids = insert_builds(&mut high, jobset, &drvs[EACH..]);
                    announce_added(&mut high, &high_ids[0].to_string());
                    high.commit().unwrap();
                    if round % 2 == 0 {
                        // Not only committed but picked up, and done, before the lower ids become visible.
                        eventually("the builds that were committed first", || {
                            let statuses = farm.statuses(&high_ids);
                            statuses
                                .iter()
                                .all(|status| *status == Some(0))
                                .then_some(())
                        });
                        highest_early.fetch_max(high_ids[EACH - 1].into(), Ordering::Relaxed);
                        if i64::from(low_ids[0]) < highest_early.load(Ordering::Relaxed) {
                            late_below.fetch_add(1, Ordering::Relaxed);
                        }
                    }
                    announce_added(&mut low, &low_ids[0].to_string());
                    low.commit().unwrap();
                }
            });
        }
    });
    wait_queue_empty(&farm, &mut hydrad);
    let late = late_below.into_inner();
    assert_eq!(
        late,
        (THREADS * ROUNDS / 2) as i64,
        "ids came late in every such round"
    );
}

#[test]
fn s7_notifications_that_coalesce_or_say_nothing_lose_no_build() {
    let store = NixStore::owned_by(RunAs::Unprivileged);
    let stubs = StubBuilders::new(store.owner());
    let (farm, mut hydrad, jobset) = quick_farm(&store, &stubs);
    let all = drvs(&store, r#"list 40 (n: mk "b-${n}" { } "")"#);
    let heard = farm.db.listen(&["builds_added"]);

    // PostgreSQL delivers equal notifications of one transaction once.
    let mut client = farm.client();
    let mut tx = client.transaction().unwrap();
    for batch in all[..12].chunks(4) {
        insert_builds(&mut tx, jobset, batch);
        announce_added(&mut tx, "7");
    }
    tx.commit().unwrap();
    wait_queue_empty(&farm, &mut hydrad);
    assert_eq!(heard.payloads("builds_added"), ["7"]);

    // An id far above the new builds, none at all, and something that is no id.
    for (batch, payload) in all[12..24].chunks(4).zip(["2000000000", "", "what?"]) {
        let mut tx = client.transaction().unwrap();
        insert_builds(&mut tx, jobset, batch);
        announce_added(&mut tx, payload);
        tx.commit().unwrap();
        wait_queue_empty(&farm, &mut hydrad);
    }

    // Sixteen transactions that are visible at the same moment, each with a message of its own.
    let together = Barrier::new(16);
    std::thread::scope(|scope| {
        for drv in all[24..].chunks(1) {
            let (farm, together) = (&farm, &together);
            scope.spawn(move || {
                let mut client = farm.client();
                let mut tx = client.transaction().unwrap();
                let id = insert_builds(&mut tx, jobset, drv)[0];
                announce_added(&mut tx, &id.to_string());
                together.wait();
                tx.commit().unwrap();
            });
        }
    });
    wait_queue_empty(&farm, &mut hydrad);
    let sql = "select count(*) from Builds";
    assert_eq!(client.query_one(sql, &[]).unwrap().get::<_, i64>(0), 41);
}

// ---- S8: database connections are capped

/// The highest number of hydrad's sessions in a database, looked at again and again.
fn watch_sessions(
    mut client: Client,
    db: String,
    stop: Arc<AtomicBool>,
) -> std::thread::JoinHandle<(i64, u32)> {
    std::thread::spawn(move || {
        let sql = "select count(*) from pg_stat_activity where datname = $1 and application_name = 'hydrad-queue-runner'";
        let (mut most, mut looks) = (0, 0);
        while !stop.load(Ordering::Relaxed) {
            most = most.max(client.query_one(sql, &[&db]).unwrap().get::<_, i64>(0));
            looks += 1;
            std::thread::sleep(Duration::from_millis(5));
        }
        (most, looks)
    })
}

#[test]
fn s8_a_thousand_steps_at_once_share_four_connections() {
    const SLOTS: usize = 1_000;
    let store = NixStore::owned_by(RunAs::Unprivileged);
    let stubs = StubBuilders::new(store.owner());
    let mut gate = Gate::new();
    stubs.set("all", &[("gate", gate.path().to_str().unwrap())]);
    let farm = Farm::new(&store)
        .with_machines(&stubs.machines(10, SLOTS / 10))
        .with_conf("max_db_connections = 4\n");
    let stop = Arc::new(AtomicBool::new(false));
    let watcher = watch_sessions(farm.db.superuser(), farm.db.name().into(), stop.clone());
    let builds = enqueue(
        &farm,
        &drvs(
            &store,
            &format!(r#"list {SLOTS} (n: mk "b-${{n}}" {{ }} "")"#),
        ),
    );
    let mut hydrad = farm.run(&stubs.env());

    hydrad.eventually("all slots should build at the same time", || {
        (gate.waiting() == SLOTS).then_some(())
    });
    let sql = format!("select count(*) = {SLOTS} from BuildSteps where busy = 30");
    hydrad.wait_sql(&farm.db, &sql);
    gate.open();
    farm.wait_ended(&mut hydrad, &builds);
    let sql = "select count(*) from Builds where buildStatus = 0 and isCachedBuild = 0";
    let good: i64 = farm.client().query_one(sql, &[]).unwrap().get(0);
    assert_eq!(good, SLOTS as i64);

    stop.store(true, Ordering::Relaxed);
    let (most, looks) = watcher.join().unwrap();
    assert!(
        most <= 4 + 2,
        "{most} sessions, of which 4 are pooled, one listens and one holds a lock"
    );
    assert!(
        most >= 4 && looks > 100,
        "the load was seen: {most} sessions in {looks} looks"
    );
}

#[test]
fn s8_the_smallest_pool_is_never_exceeded_and_enough() {
    const BUILDS: usize = 400;
    let store = NixStore::owned_by(RunAs::Unprivileged);
    let stubs = StubBuilders::new(store.owner());
    let farm = Farm::new(&store)
        .with_machines(&stubs.machines(10, 10))
        .with_conf("max_db_connections = 2\n");
    let stop = Arc::new(AtomicBool::new(false));
    let watcher = watch_sessions(farm.db.superuser(), farm.db.name().into(), stop.clone());
    let mut hydrad = farm.run(&stubs.env());
    let drvs = drvs(
        &store,
        &format!(r#"list {BUILDS} (n: mk "b-${{n}}" {{ dep = mk "d-${{n}}" {{ }} ""; }} "")"#),
    );
    // Inspection, the reading of the queue and the records all want connections at the same time.
    let builds: Vec<i32> = drvs
        .chunks(50)
        .flat_map(|drvs| enqueue(&farm, drvs))
        .collect();
    farm.wait_ended(&mut hydrad, &builds);
    assert_eq!(farm.statuses(&builds), [Some(0); BUILDS]);
    stop.store(true, Ordering::Relaxed);
    let (most, _) = watcher.join().unwrap();
    assert_eq!(most, 2 + 2, "the pool was full, and no fuller");
}

#[test]
fn s8_the_start_warns_when_postgresql_has_no_room_for_the_pool() {
    let store = NixStore::owned_by(RunAs::Unprivileged);
    let farm = Farm::new(&store).with_conf("max_db_connections = 1000\n");
    let mut hydrad = farm.run(&[]);
    let warning = hydrad.wait_log("PostgreSQL has room for 197 connections");
    for words in [
        "up to 1002",
        "lower max_db_connections",
        "raise max_connections",
    ] {
        assert!(warning.contains(words), "{warning}");
    }
    hydrad.wait_log("ready: ");
}
