//! What is served over HTTP, whoever asks; the watchdog; and a queue that says by itself that it does not move.

mod common;

use std::collections::{BTreeMap, BTreeSet};
use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixDatagram;
use std::path::Path;
use std::process::{Command, Stdio};

use common::{eventually, patience, stub_jobs, system, Gate, Hydrad, Pg, RunAs, Site, TestDir};
use serde_json::Value;

/// Both sites on ports of their own choice.
const OPEN: &str = "queue_runner_metrics_address = 127.0.0.1:0\nstatus_address = 127.0.0.1:0\n";

/// A running farm and where it answers.
struct Served {
    hydrad: Hydrad,
    metrics: String,
    status: String,
}

impl Served {
    fn start(site: &Site) -> Served {
        Served::of(site.start())
    }

    /// A process that is ready has said where it answers.
    fn of(hydrad: Hydrad) -> Served {
        let log = hydrad.log();
        let address_of = |path: &str| {
            let mut lines = log
                .lines()
                .filter_map(|line| line.split_once("serving http://"));
            let found = lines.find_map(|(_, place)| place.strip_suffix(path));
            found
                .unwrap_or_else(|| panic!("nothing serves {path}: {log}"))
                .to_owned()
        };
        Served {
            metrics: address_of("/metrics"),
            status: address_of("/status"),
            hydrad,
        }
    }

    fn json(&self, path: &str) -> Value {
        let (status, body) = get(&self.status, path);
        assert_eq!(status, 200, "{path}: {body}");
        serde_json::from_str(&body).unwrap_or_else(|e| panic!("{path}: {e}: {body}"))
    }

    fn metrics(&self) -> Metrics {
        let (status, body) = get(&self.metrics, "/metrics");
        assert_eq!(status, 200, "{body}");
        Metrics::read(&body)
    }
}

/// Sends these bytes and reads to the end.
fn send(address: &str, bytes: &[u8]) -> String {
    let mut stream = TcpStream::connect(address).expect("connect");
    stream
        .set_read_timeout(Some(patience()))
        .expect("a time-out");
    // Whoever is refused in the middle still gets an answer.
    let _ = stream.write_all(bytes);
    read_all(&mut stream)
}

fn read_all(stream: &mut TcpStream) -> String {
    let mut answer = Vec::new();
    if let Err(error) = stream.read_to_end(&mut answer) {
        assert!(!answer.is_empty(), "no answer: {error}");
    }
    String::from_utf8(answer).expect("an answer in UTF-8")
}

fn get(address: &str, path: &str) -> (u16, String) {
    let request = format!("GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
    parts(&send(address, request.as_bytes()))
}

/// Status and body of an answer.
fn parts(answer: &str) -> (u16, String) {
    let (head, body) = answer
        .split_once("\r\n\r\n")
        .unwrap_or_else(|| panic!("an answer: {answer:?}"));
    let status = head.split(' ').nth(1).and_then(|code| code.parse().ok());
    (
        status.unwrap_or_else(|| panic!("a status: {head}")),
        body.to_owned(),
    )
}

/// A page as Prometheus' own library reads it.
struct Metrics {
    samples: Vec<(String, BTreeMap<String, String>, f64)>,
    families: BTreeMap<String, String>,
}

impl Metrics {
    fn read(page: &str) -> Metrics {
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/scripts/read-metrics.py");
        let mut reader = Command::new("/usr/bin/python3")
            .arg(script)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("start python3");
        let mut stdin = reader.stdin.take().expect("a pipe");
        stdin.write_all(page.as_bytes()).expect("a page to read");
        drop(stdin);
        let output = reader.wait_with_output().expect("an answer");
        assert!(
            output.status.success(),
            "Prometheus' library does not take:\n{page}"
        );
        let json: Value = serde_json::from_slice(&output.stdout).expect("JSON");
        let samples = json.as_array().expect("a list").iter().map(|sample| {
            let text = |at: usize| sample[at].as_str().expect("text").to_owned();
            assert_ne!(text(1), "unknown", "the type of {}", text(3));
            assert!(!text(2).is_empty(), "the help of {}", text(3));
            let labels = sample[4].as_object().expect("labels").iter();
            let labels = labels.map(|(k, v)| (k.clone(), v.as_str().expect("text").to_owned()));
            (
                text(3),
                labels.collect(),
                sample[5].as_f64().expect("a number"),
            )
        });
        let types = page.lines().filter_map(|line| line.strip_prefix("# TYPE "));
        let types = types.map(|line| line.split_once(' ').expect("name and type"));
        Metrics {
            samples: samples.collect(),
            families: types
                .map(|(name, kind)| (name.to_owned(), kind.to_owned()))
                .collect(),
        }
    }

    /// The only sample with (at least) these labels.
    fn get(&self, name: &str, labels: &[(&str, &str)]) -> f64 {
        let has = |of: &BTreeMap<String, String>| {
            labels
                .iter()
                .all(|(label, value)| of.get(*label).is_some_and(|is| is == value))
        };
        // Prometheus' library gives every counter's sample this ending.
        let is_name = |is: &str| is == name || is.strip_suffix("_total") == Some(name);
        let mut found = self
            .samples
            .iter()
            .filter(|(is, of, _)| is_name(is) && has(of));
        let (_, _, value) = found
            .next()
            .unwrap_or_else(|| panic!("no {name} {labels:?}"));
        assert!(found.next().is_none(), "more than one {name} {labels:?}");
        *value
    }
}

#[test]
fn pages_tell_what_happens_while_it_happens() {
    let site = Site::new(Pg::shared());
    site.configure(OPEN);
    let mut gate = Gate::new();
    site.stubs
        .set("all", &[("gate", &gate.path().to_string_lossy())]);
    site.machines(&(Site::stub("m1", 2, 3, "kvm") + "m2 aarch64-linux - 1 1 - big\n"));
    let builds = site.queue(&stub_jobs("a", 3, ""));
    let odd = site.queue(&stub_jobs(
        "odd",
        1,
        "requiredSystemFeatures = [ \"fast\" ];",
    ));
    let mut served = Served::start(&site);
    eventually("two builds at the gate", || {
        (gate.waiting() == 2).then_some(())
    });

    // Over the status address: the names are those of Hydra's REST interface.
    let jobset = "manual:manual";
    let status = eventually("a snapshot with both runs", || {
        let status = served.json("/status");
        (status["queueRunner"]["nrStepsBuilding"] == 2).then_some(status)
    });
    let runner = &status["queueRunner"];
    assert_eq!(runner["status"], "up");
    assert_eq!(runner["proc"]["pid"], served.hydrad.pid());
    assert_eq!(runner["nrBuildsUnfinished"], 4);
    assert_eq!(runner["runnableCount"], 2);
    assert_eq!(runner["stepsReadyByReason"]["all_full"], 1);
    assert_eq!(runner["stepsReadyByReason"]["no_machine"], 1);
    assert_eq!(runner["mainQueueStats"][system()]["totalRunnable"], 3);
    assert_eq!(runner["nrBuildsRead"], 4);
    assert_eq!(status["jobsets"][jobset]["projectName"], "manual");
    assert_eq!(status["jobsets"][jobset]["shares"], 100);
    let machine = &served.json("/status/machines")["machines"]["m1"];
    assert_eq!(*machine, status["machines"]["m1"]);
    // What Hydra's web server takes of each machine, in the types it needs.
    assert_eq!(machine["systems"][0], system());
    assert_eq!(machine["supportedFeatures"], serde_json::json!(["kvm"]));
    assert_eq!(machine["mandatoryFeatures"], serde_json::json!([]));
    assert_eq!(
        status["machines"]["m2"]["mandatoryFeatures"],
        serde_json::json!(["big"])
    );
    assert_eq!(
        (&machine["maxJobs"], &machine["speedFactor"]),
        (&2.into(), &3.0.into())
    );
    assert_eq!(machine["hasCapacity"], false);
    assert_eq!(machine["hasStaticCapacity"], false);
    assert_eq!(machine["hasDynamicCapacity"], true);
    assert_eq!(status["machines"]["m2"]["hasCapacity"], true);
    for number in ["score", "totalMem"] {
        assert!(machine[number].is_number(), "{number}");
    }
    let stats = [
        "nrStepsDone",
        "avgStepBuildTimeMs",
        "load1",
        "load5",
        "load15",
        "memUsage",
        "currentJobs",
    ];
    for number in stats {
        assert!(machine["stats"][number].is_number(), "{number}");
    }
    assert_eq!(machine["jobs"].as_array().map(Vec::len), Some(2));
    let steps = served.json("/status/steps");
    assert_eq!(
        (&steps["stepCount"], &steps["truncated"]),
        (&4.into(), &false.into())
    );
    let phases: Vec<&Value> = steps["steps"]
        .as_array()
        .expect("steps")
        .iter()
        .map(|s| &s["phase"])
        .collect();
    assert_eq!(
        phases.iter().filter(|phase| **phase == "building").count(),
        2
    );
    let ready = served.json("/status/runnable");
    assert_eq!(ready["stepCount"], 2);
    let last: String = site.ask(&format!(
        "select drvPath from Builds where id = {}",
        builds[2]
    ));
    assert_eq!(
        ready["steps"][0]["drvPath"],
        last.rsplit('/').next().expect("a name")
    );
    assert_eq!(ready["steps"][0]["lowestBuildId"], builds[2]);
    let queue = &served.json("/status/queues")["queues"][system()];
    assert_eq!(
        (
            &queue[0]["alreadyScheduled"],
            &queue[0]["highestLocalPriority"]
        ),
        (&false.into(), &100.into())
    );
    assert_eq!(served.json("/status/queues/scheduled")["stepCount"], 2);
    let few = served.json("/status/queues/jobs?limit=1");
    assert_eq!(
        (&few["stepCount"], &few["truncated"]),
        (&4.into(), &true.into())
    );
    assert_eq!(few["steps"].as_array().map(Vec::len), Some(2));
    assert_eq!(
        served.json(&format!("/status/build/{}/active", builds[0])),
        serde_json::json!({"active": true})
    );
    let build = served.json(&format!("/status/build/{}", odd[0]));
    assert_eq!(
        (&build["job"], &build["finishedInDb"]),
        (&"odd000".into(), &false.into())
    );
    let why = build["why"].as_str().expect("the plan's words");
    assert!(why.contains("no machine"), "{why}");

    for (path, words) in [
        (format!("/explain/build/{}", odd[0]), "no machine"),
        ("/explain/machine/m1".to_owned(), "m1"),
        (
            format!("/explain/drv/{}", last.trim_start_matches('/')),
            "m1",
        ),
    ] {
        let text = served.json(&path)["text"].to_string();
        assert!(text.contains(words), "{path}: {text}");
    }
    assert_eq!(get(&served.status, "/explain/machine/m9").0, 404);

    // Over the metrics address: nothing but metrics and health.
    for (address, path, code) in [
        (&served.metrics, "/healthz", 200),
        (&served.status, "/healthz", 200),
        (&served.metrics, "/status", 404),
        (&served.status, "/metrics", 404),
        (&served.status, "/status/build/99999999", 404),
        (&served.status, "/status/build/x", 404),
        (&served.status, "/status/steps?limit=x", 400),
        (&served.status, "/status/machines/", 200),
    ] {
        assert_eq!(get(address, path).0, code, "{path}");
    }
    let metrics = served.metrics();
    for (name, labels, value) in [
        ("hydraqueuerunner_builds_unfinished", &[][..], 4.0),
        ("hydraqueuerunner_steps_building", &[], 2.0),
        ("hydraqueuerunner_builds_read", &[], 4.0),
        (
            "hydraqueuerunner_machine_current_jobs",
            &[("hostname", "m1")],
            2.0,
        ),
        (
            "hydrad_machine_unavailable",
            &[("machine", "m1"), ("reason", "full")],
            1.0,
        ),
        ("hydrad_machines", &[("state", "ready")], 1.0),
        ("hydrad_steps_ready", &[("reason", "all_full")], 1.0),
        ("hydrad_steps_ready", &[("reason", "no_machine")], 1.0),
        ("hydrad_db_pool_size", &[], 16.0),
        ("hydrad_database_away_seconds", &[], 0.0),
        ("hydrad_stalled_seconds", &[], 0.0),
        ("hydrad_threads_stuck", &[], 0.0),
    ] {
        assert_eq!(metrics.get(name, labels), value, "{name} {labels:?}");
    }
    for thread in [
        "plan",
        "writer",
        "monitor",
        "listen",
        "inspect-1",
        "machines",
        "slot-m1",
        "watchdog",
        "http",
    ] {
        metrics.get("hydrad_thread_heartbeat_age_seconds", &[("thread", thread)]);
    }

    gate.open();
    served.hydrad.wait_sql(
        &site.db,
        "select count(*) = 3 from Builds where finished = 1",
    );
    let metrics = eventually("a page that knows of the end", || {
        let metrics = served.metrics();
        // (The number of pending notifications may be ten seconds old.)
        let is_told = metrics.get("hydrad_notifications_pending", &[]) == 3.0;
        (is_told && metrics.get("hydraqueuerunner_builds_succeeded", &[]) == 3.0).then_some(metrics)
    });
    assert_eq!(
        metrics.get("hydraqueuerunner_machine_steps_done", &[("hostname", "m1")]),
        3.0
    );
    assert!(
        metrics.get(
            "hydrad_phase_seconds_total",
            &[("machine", "m1"), ("phase", "building")]
        ) > 0.0
    );
    assert!(metrics.get("hydrad_received_bytes_total", &[]) > 0.0);
    assert!(metrics.get("hydrad_writer_records_total", &[]) > 6.0);
    assert_eq!(
        served.json(&format!("/status/build/{}/active", builds[0])),
        serde_json::json!({"active": false})
    );
    names_are_kept(&metrics);
    assert!(served.hydrad.terminate().success());
}

/// Every metric that a dashboard, an alert or the manual names is there, and the manual names every one.
fn names_are_kept(metrics: &Metrics) {
    for (name, kind) in &metrics.families {
        let is_hydras = name.starts_with("hydraqueuerunner_") || name.starts_with("process_");
        let ends = name.ends_with("_total");
        assert!(
            is_hydras || (kind == "counter") == ends,
            "{name} is a {kind}"
        );
    }
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let text = |path: &str| {
        std::fs::read_to_string(root.join(path)).unwrap_or_else(|e| panic!("{path}: {e}"))
    };
    let known: BTreeSet<&str> = metrics.families.keys().map(String::as_str).collect();
    for path in ["conf/prometheus/alerts.yml", "conf/grafana/hydrad.json"] {
        let text = text(path);
        let named = names_in(&text);
        assert!(named.len() > 5, "{path} names {named:?}");
        let unknown: Vec<_> = named
            .iter()
            .filter(|name| !known.contains(name.as_str()))
            .collect();
        assert_eq!(unknown, [""; 0], "{path} names what is not there");
    }
    let manual = text("MANUAL.md");
    let section = manual
        .split("## ")
        .find(|section| section.contains("hydrad_stalled_seconds"));
    let documented = names_in(section.expect("a section on metrics"));
    let silent: Vec<_> = known
        .iter()
        .filter(|name| !documented.contains(**name))
        .collect();
    assert_eq!(silent, [&""; 0], "MANUAL.md does not tell of them");
}

fn names_in(text: &str) -> BTreeSet<String> {
    let words = text.split(|c: char| !(c.is_ascii_alphanumeric() || c == '_'));
    let is_name = |word: &&str| {
        let prefixes = ["hydrad_", "hydraqueuerunner_", "process_"];
        prefixes
            .iter()
            .any(|prefix| word.starts_with(prefix) && word.len() > prefix.len())
    };
    words.filter(is_name).map(String::from).collect()
}

#[test]
fn hostile_clients_cost_themselves_an_answer_and_nobody_else_anything() {
    let site = Site::new(Pg::shared());
    site.configure(OPEN);
    site.machines(&Site::stub("m1", 4, 1, "-"));
    let mut served = Served::start(&site);

    // Nonsense gets its name.
    let long = format!(
        "GET / HTTP/1.1\r\nHost: x\r\nX: {}\r\n\r\n",
        "y".repeat(1 << 20)
    );
    let endless = vec![b'a'; 1 << 20];
    for (what, request, code) in [
        ("garbage", &b"\x16\x03\x01\x00\xff\xff\x00"[..], 400),
        ("no host", b"GET /healthz HTTP/1.1\r\n\r\n", 400),
        (
            "a body",
            b"GET /healthz HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\n123456789",
            413,
        ),
        (
            "a method",
            b"DELETE /healthz HTTP/1.1\r\nHost: x\r\n\r\n",
            405,
        ),
        ("megabytes of headers", long.as_bytes(), 431),
        ("megabytes of a method", &endless, 431),
        ("another version", b"GET / HTTP/3.0\r\n\r\n", 505),
    ] {
        let answer = send(&served.metrics, request);
        let (status, body) = parts(&answer);
        assert_eq!(status, code, "{what}: {answer}");
        assert!(body.starts_with("{\"error\":"), "{what}: {body}");
    }
    let head = send(&served.metrics, b"HEAD /metrics HTTP/1.0\r\n\r\n");
    let (_, body) = parts(&head);
    assert_eq!(
        (body.as_str(), head.starts_with("HTTP/1.1 200 ")),
        ("", true)
    );

    // A half-closed client is answered; several requests at once, one after the other.
    let mut half = TcpStream::connect(&served.metrics).expect("connect");
    half.write_all(b"GET /healthz HTTP/1.0\r\n\r\n")
        .expect("sent");
    half.shutdown(Shutdown::Write).expect("half closed");
    assert_eq!(parts(&read_all(&mut half)).0, 200);
    let twice = "GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n".repeat(2)
        + "GET /x HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n";
    let answers = send(&served.metrics, twice.as_bytes());
    let codes: Vec<&str> = answers
        .split("HTTP/1.1 ")
        .skip(1)
        .map(|a| &a[..3])
        .collect();
    assert_eq!(codes, ["200", "200", "404"]);

    // Many who send nothing, or a little at a time, or do not read: those who ask are answered, and builds go on.
    let connect = || TcpStream::connect(&served.metrics).expect("connect");
    let mut silent: Vec<TcpStream> = (0..150).map(|_| connect()).collect();
    let mut dripping: Vec<TcpStream> = (0..150).map(|_| connect()).collect();
    let deaf: Vec<TcpStream> = (0..20)
        .map(|_| {
            let mut stream = connect();
            let many = "GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n".repeat(50);
            stream.write_all(many.as_bytes()).expect("sent");
            stream
        })
        .collect();
    for stream in &mut dripping {
        // Those that were sent away to make room notice.
        let _ = stream.write_all(b"GET /met");
    }
    site.queue(&stub_jobs("a", 8, ""));
    for _ in 0..20 {
        assert_eq!(get(&served.metrics, "/healthz").0, 200);
        for stream in &mut dripping {
            let _ = stream.write_all(b"r");
        }
    }
    site.wait_all_finished(&mut served.hydrad);
    let metrics = served.metrics();
    assert!(metrics.get("hydrad_http_connections", &[]) <= 256.0);
    assert!(metrics.get("hydrad_http_evicted_total", &[]) >= 60.0);
    // Whoever is still there is told in the end. (The newest of them were not sent away.)
    let mut last = dripping.pop().expect("many");
    last.set_read_timeout(Some(patience())).expect("a time-out");
    assert_eq!(parts(&read_all(&mut last)).0, 408);
    drop((silent.drain(..), deaf));
    site.assert_complete();
    let log = served.hydrad.log();
    assert!(!log.contains("panicked") && !log.contains("BUG"), "{log}");
    assert!(served.hydrad.terminate().success());
}

#[test]
fn sockets_that_systemd_opened_come_before_addresses() {
    let site = Site::new(Pg::shared());
    site.configure("queue_runner_metrics_address = 127.0.0.1:0\nstatus_address = none\n");
    let listen = || TcpListener::bind("127.0.0.1:0").expect("a port");
    let (metrics, status, other) = (listen(), listen(), listen());
    let sockets = [
        ("metrics", &metrics),
        ("hydrad-status.socket", &status),
        ("other", &other),
    ];
    let mut hydrad = site.hydrad(&["run"]).with_sockets(&sockets).start();
    hydrad.wait_log("ready: ");
    let at = |socket: &TcpListener| socket.local_addr().expect("an address").to_string();
    assert_eq!(get(&at(&metrics), "/metrics").0, 200);
    assert_eq!(get(&at(&status), "/status").0, 200);
    assert_eq!(get(&at(&status), "/metrics").0, 404);
    hydrad.wait_log("systemd passed a socket named 'other'");
    assert!(hydrad.terminate().success());
}

#[test]
fn an_address_in_use_keeps_nobody_from_building() {
    let site = Site::new(Pg::shared());
    let holder = TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = holder.local_addr().expect("an address").to_string();
    site.configure(&format!("queue_runner_metrics_address = {address}\n"));
    site.machines(&Site::stub("m1", 1, 1, "-"));
    site.queue(&stub_jobs("a", 1, ""));
    let mut hydrad = site.start();
    hydrad.wait_log(&format!(
        "cannot serve /metrics on {address}: Address already in use; trying again"
    ));
    site.wait_all_finished(&mut hydrad);
    drop(holder);
    hydrad.wait_log(&format!("serving http://{address}/metrics"));
    assert_eq!(get(&address, "/healthz").0, 200);
}

/// What hydrad tells systemd.
struct Systemd {
    socket: UnixDatagram,
    dir: TestDir,
}

impl Systemd {
    fn new() -> Systemd {
        let dir = TestDir::new(RunAs::Me);
        let path = dir.join("notify");
        let socket = UnixDatagram::bind(&path).expect("bind a socket of our own");
        socket
            .set_read_timeout(Some(patience()))
            .expect("a time-out");
        std::fs::set_permissions(&path, PermissionsExt::from_mode(0o777)).expect("chmod");
        Systemd { socket, dir }
    }

    /// Wait for a message that begins like this.
    fn wait(&self, beginning: &str) -> String {
        let mut buffer = [0; 4096];
        loop {
            let n = self
                .socket
                .recv(&mut buffer)
                .unwrap_or_else(|e| panic!("no {beginning}: {e}"));
            let message = String::from_utf8_lossy(&buffer[..n]).into_owned();
            if message.starts_with(beginning) {
                return message;
            }
        }
    }

    /// Forget what has come so far.
    fn forget(&self) {
        let mut buffer = [0; 4096];
        self.socket.set_nonblocking(true).expect("a flag");
        while self.socket.recv(&mut buffer).is_ok() {}
        self.socket.set_nonblocking(false).expect("a flag");
    }
}

#[test]
fn a_thread_that_stands_still_is_named_and_the_service_lives_on() {
    let pg = Pg::start();
    let site = Site::new(&pg);
    site.configure(&format!("{OPEN}watchdog_patience = 1\n"));
    site.machines(&Site::stub("m1", 1, 1, "-"));
    let build = site.queue(&stub_jobs("hung", 1, ""))[0];
    let drv: String = site.ask(&format!("select drvPath from Builds where id = {build}"));
    // A derivation whose file system hangs: whoever opens it waits.
    let aside = site.folder("aside");
    let (text, pipe) = (aside.join("text"), aside.join("pipe"));
    std::fs::rename(&drv, &text).expect("move the derivation aside");
    common::output_of(Command::new("mkfifo").arg("-m").arg("666").arg(&drv));
    let systemd = Systemd::new();
    let mut hydrad = site
        .hydrad(&["run"])
        .env(
            "NOTIFY_SOCKET",
            systemd.dir.join("notify").to_string_lossy(),
        )
        .env("WATCHDOG_USEC", "2000000")
        .start();
    systemd.wait("READY=1");
    let name = drv.rsplit('/').next().expect("a name").to_owned();
    let line = hydrad.wait_log("stands still while reading a derivation");
    assert!(
        line.contains("the thread 'inspect-") && line.contains(&name),
        "{line}"
    );
    let told = systemd.wait("STATUS=the thread '");
    assert!(told.contains("stands still while reading"), "{told}");
    hydrad.wait_log("ready: ");
    let mut served = Served::of(hydrad);
    let everything = served.json("/status");
    let stuck = everything["queueRunner"]["stuckThreads"]
        .as_array()
        .expect("a list");
    assert_eq!(stuck.len(), 1, "{stuck:?}");
    let page = served.metrics();
    assert_eq!(page.get("hydrad_threads_stuck", &[]), 1.0);
    let phase = ("phase", "reading a derivation");
    assert!(page.get("hydrad_thread_stuck_seconds", &[phase]) >= 1.0);

    // Asked for, all threads are listed.
    served.hydrad.signal(libc::SIGUSR1);
    served
        .hydrad
        .wait_log("thread 'plan': waiting for events for ");
    served
        .hydrad
        .wait_log("thread 'writer': waiting for records for ");
    served
        .hydrad
        .wait_log("thread 'main': waiting for signals for ");

    // Neither that nor the database being away is a reason to be ended.
    pg.stop_server();
    served.hydrad.wait_log("the listening connection is lost");
    systemd.forget();
    for _ in 0..4 {
        systemd.wait("WATCHDOG=1");
    }
    assert_eq!(get(&served.metrics, "/healthz").0, 200);
    assert_eq!(get(&served.metrics, "/metrics").0, 200);
    assert_eq!(
        get(&served.status, &format!("/status/build/{build}")).0,
        503
    );
    pg.start_server();

    std::fs::rename(&drv, &pipe).expect("move the pipe away");
    std::fs::copy(&text, &drv).expect("put the derivation back");
    std::fs::write(&pipe, std::fs::read(&text).expect("the derivation")).expect("let it go on");
    served.hydrad.wait_log("goes on after it stood still for");
    site.wait_all_finished(&mut served.hydrad);
    site.assert_complete();
    systemd.forget();
    assert!(served.hydrad.terminate().success());
    systemd.wait("STOPPING=1");
}

#[test]
fn a_queue_that_does_not_move_says_so_by_itself() {
    let site = Site::new(Pg::shared());
    site.configure(&format!("{OPEN}stall_warning = 1\n"));
    site.machines(&Site::stub("m1", 3, 1, "-"));
    site.queue(&stub_jobs("a", 2, "requiredSystemFeatures = [ \"kvm\" ];"));
    let mut served = Served::start(&site);
    let line = served.hydrad.wait_log("nothing has begun to build for 1s");
    let type_name = format!("{}:kvm (2): no machine supports that", system());
    assert!(
        line.contains("steps are ready (2) and slots are free (3)"),
        "{line}"
    );
    assert!(line.contains(&type_name), "{line}");
    let metrics = eventually("a page that tells of it", || {
        let metrics = served.metrics();
        (metrics.get("hydrad_stalls_total", &[]) == 1.0).then_some(metrics)
    });
    assert!(metrics.get("hydrad_stalled_seconds", &[]) >= 1.0);
    let runner = &served.json("/status")["queueRunner"];
    assert!(
        runner["stall"]
            .as_str()
            .expect("the line")
            .contains(&type_name),
        "{runner}"
    );

    site.machines(&Site::stub("m1", 3, 1, "kvm"));
    served.hydrad.wait_log("the queue moves again, after");
    site.wait_all_finished(&mut served.hydrad);
    eventually("a page that tells of the end", || {
        (served.metrics().get("hydrad_stalled_seconds", &[]) == 0.0).then_some(())
    });
    assert_eq!(
        served
            .hydrad
            .log()
            .matches("nothing has begun to build")
            .count(),
        1
    );
}
