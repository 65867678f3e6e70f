//! The fixtures themselves: each is started for real and does what the other tests take for granted.

mod common;

use std::io::{Read, Write};
use std::process::{Command, Stdio};

use common::{
    output_of, Hydrad, Listener, NixDaemon, NixStore, Pg, RunAs, SshConfig, Sshd, StubBuilders,
};

const GREETING: [u64; 2] = [0x390c9deb, 0x207];

/// Two derivations, the second using the first.
const TWO: &str = r#"
let make = name: script: derivation {
  inherit name; system = builtins.currentSystem; builder = "/bin/sh"; args = [ "-c" script ]; PATH = "/usr/bin:/bin";
}; in rec { a = make "a" "echo first > $out"; b = make "b" "cat ${a} > $out; echo second >> $out"; }
"#;

#[test]
fn databases_are_fresh_copies_and_notifications_arrive_in_order() {
    let pg = Pg::shared();
    let fill = |db: &common::Db| {
        db.client()
            .batch_execute("create table t (n int); insert into t values (1)")
            .unwrap()
    };
    let (one, two) = (
        pg.db_from("one row", fill),
        pg.db_from("one row", |_| panic!("filled once only")),
    );
    assert_ne!(one.name(), two.name());
    assert_eq!(one.client().execute("update t set n = 2", &[]).unwrap(), 1);
    assert_eq!(
        two.client()
            .query_one("select n from t", &[])
            .unwrap()
            .get::<_, i32>(0),
        1,
        "copies are independent"
    );
    assert_eq!(
        two.client()
            .query_one("select current_user::text", &[])
            .unwrap()
            .get::<_, String>(0),
        "hydra"
    );

    let heard = Listener::start(&two, &["one", "two"]);
    let mut client = two.client();
    for payload in ["a", "b", "c"] {
        client
            .execute(
                "select pg_notify('one', $1), pg_notify('two', $1)",
                &[&payload],
            )
            .unwrap();
    }
    client
        .batch_execute("notify other, 'unheard'; notify two, 'last'")
        .unwrap();
    heard.wait_for("two", "last");
    assert_eq!(heard.payloads("one"), ["a", "b", "c"]);
    assert_eq!(heard.payloads("two"), ["a", "b", "c", "last"]);
    assert_eq!(heard.events().len(), 7);
}

#[test]
fn a_cluster_of_ones_own_can_be_stopped_and_started() {
    let pg = Pg::start();
    let db = pg.empty_db();
    let mut client = db.client();
    client.batch_execute("create table t (n int)").unwrap();
    pg.stop_server();
    assert!(
        client.batch_execute("select 1").is_err(),
        "connections break"
    );
    pg.start_server();
    db.client()
        .batch_execute("insert into t values (1)")
        .unwrap();
}

#[test]
fn a_store_builds() {
    for owner in [RunAs::Me, RunAs::Unprivileged] {
        let store = NixStore::owned_by(owner);
        let drvs = store.instantiate(TWO);
        assert_eq!(drvs.len(), 2);
        let outputs = store.build(&drvs[1]);
        assert_eq!(
            std::fs::read_to_string(&outputs[0]).unwrap(),
            "first\nsecond\n"
        );
        assert!(outputs[0].starts_with(store.store_dir().to_str().unwrap()));
        assert_eq!(outputs, store.outputs(&drvs[1]));
        assert!(store.is_valid(&outputs[0]));
    }
}

#[test]
fn a_second_store_has_the_same_paths_but_files_of_its_own() {
    for owner in [RunAs::Me, RunAs::Unprivileged] {
        let store = NixStore::owned_by(owner);
        let drvs = store.instantiate(TWO);
        let output = store.outputs(&drvs[0]).remove(0);
        let second = store.second();
        assert!(!second.is_valid(&drvs[0]));

        // Copy the derivation there, build it there, bring the output back.
        let sent = copy(
            store.command("nix-store").args(["--export", &drvs[0]]),
            second.command("nix-store").arg("--import"),
        );
        assert_eq!(sent.trim_end(), drvs[0]);
        assert_eq!(second.store(&["-r", &drvs[0]]), output);
        assert!(second.is_valid(&output));
        assert!(!store.is_valid(&output));
        copy(
            second.command("nix-store").args(["--export", &output]),
            store.command("nix-store").arg("--import"),
        );
        assert_eq!(std::fs::read_to_string(&output).unwrap(), "first\n");
    }
}

#[test]
fn sshd_is_a_host_with_its_own_store() {
    let store = NixStore::new();
    let sshd = Sshd::start(&store.env());
    for user in [RunAs::Me, RunAs::Unprivileged] {
        let mut config = SshConfig::new(user);
        config.add("builder", &sshd);
        let version = output_of(config.ssh("builder").args(["nix-store", "--version"]));
        assert!(version.starts_with("nix-store (Nix) "), "{version}");
        assert_eq!(
            output_of(config.ssh("builder").arg("echo $NIX_STORE_DIR")),
            store.store_dir().to_str().unwrap()
        );

        let drv = store.instantiate(TWO).remove(0);
        let mut serve = config.ssh("builder");
        let answer = converse(
            serve.args(["nix-store", "--serve", "--write"]),
            &query_valid(&[&drv, &store.outputs(&drv)[0]]),
        );
        assert_eq!(
            numbers(&answer[..24]),
            [0x5452eecb, 0x207, 1],
            "the one valid path"
        );
        assert_eq!(&answer[32..32 + drv.len()], drv.as_bytes());
    }
    let mut encode = Command::new("sh");
    encode.args(["-c", "printf %s \"$(cat \"$1\")\" | base64 -w0", "sh"]);
    assert_eq!(
        sshd.host_key_base64(),
        output_of(encode.arg(sshd.host_key_file()))
    );
}

#[test]
fn sshd_turns_away_strangers() {
    let (sshd, other) = (Sshd::start(&[]), Sshd::start(&[]));
    let mut config = SshConfig::new(RunAs::Me);
    config.add("builder", &sshd);
    let key_of_other = other.user_key();
    let output = config
        .ssh("builder")
        .args(["-o", "IdentityFile=none", "-i"])
        .arg(key_of_other)
        .arg("true")
        .output();
    assert!(
        output.unwrap().status.success(),
        "the configured key is still offered"
    );
    let mut stranger = Command::new("ssh");
    stranger.args([
        "-F",
        "none",
        "-o",
        "BatchMode=yes",
        "-o",
        "StrictHostKeyChecking=no",
        "-o",
        "IdentityAgent=none",
    ]);
    stranger
        .args([
            "-o",
            "UserKnownHostsFile=/dev/null",
            "-o",
            "IdentitiesOnly=yes",
            "-i",
        ])
        .arg(other.user_key());
    stranger.args(["-p", &sshd.port().to_string(), "127.0.0.1", "true"]);
    let output = stranger.output().unwrap();
    assert_eq!(output.status.code(), Some(255));
    assert!(String::from_utf8_lossy(&output.stderr).contains("Permission denied"));
}

#[test]
fn a_daemon_serves_its_store() {
    for owner in [RunAs::Me, RunAs::Unprivileged] {
        let store = NixStore::owned_by(owner);
        let daemon = NixDaemon::start(&store, &[&owner.name()]);
        let drv = store.instantiate(TWO).remove(0);
        let mut client = RunAs::Unprivileged.command("nix-store");
        let output = output_of(
            client
                .envs(daemon.env())
                .env("HOME", "/nonexistent")
                .args(["-r", &drv]),
        );
        assert_eq!(std::fs::read_to_string(output).unwrap(), "first\n");
    }
}

#[test]
fn the_program_starts_and_its_end_is_seen() {
    let mut hydrad = Hydrad::run(&["--version"]).start();
    assert!(hydrad.wait().success());
    assert!(hydrad.wait_log("hydrad ").starts_with("hydrad "));
}

#[test]
fn a_stub_builder_builds_and_fails_on_request() {
    let stubs = StubBuilders::new(RunAs::Me);
    let stub = |host: &str, request: &[u8]| {
        let mut command = Command::new(stubs.program());
        command.envs(stubs.env()).args([
            host,
            "-x",
            "-oBatchMode=yes",
            "--",
            "nix-store",
            "--serve",
            "--write",
        ]);
        converse(&mut command, request)
    };

    // What Nix itself makes of it, as a client that builds there and takes the output from there.
    let store = NixStore::new();
    let drvs = store.instantiate(TWO);
    let output = store.outputs(&drvs[1]).remove(0);
    stubs.set("m17", &[("valid", "imported"), ("lines", "3")]);
    let mut build = store.command("nix-store");
    build
        .envs(stubs.env())
        .args(["-r", &drvs[1], "-j0", "--builders"])
        .arg("ssh://m17 x86_64-linux,aarch64-linux,i686-linux");
    assert_eq!(output_of(&mut build), output);
    let text = std::fs::read_to_string(&output).unwrap();
    assert_eq!(
        text,
        format!("stub output {}\n", output.rsplit('/').next().unwrap())
    );
    let first = store.outputs(&drvs[0]).remove(0);
    for (event, detail) in [
        ("built", &drvs[0]),
        ("import", &first),
        ("built", &drvs[1]),
        ("dump", &output),
    ] {
        stubs.wait_event("m17", event, detail);
    }

    let asked = query_valid(&["/nix/store/x"]);
    assert_eq!(numbers(&stub("m1", &asked)[..24]), [0x5452eecb, 0x207, 1]);
    stubs.set("m1", &[("valid", "imported")]);
    assert_eq!(numbers(&stub("m1", &asked)), [0x5452eecb, 0x207, 0]);
    stubs.set("m1", &[("fault", "die-in-valid@1")]);
    assert_eq!(
        numbers(&stub("m1", &asked)),
        [0x5452eecb, 0x207],
        "once it dies"
    );
    assert_eq!(stub("m1", &asked).len(), 48, "the next time it answers");
    stubs.set("m1", &[("fault", "garbage-greeting")]);
    assert!(stub("m1", &asked).starts_with(b"Welcome"));
    stubs.set("m1", &[("fault", "hang-in-handshake")]);
    assert!(
        stub("m1", &asked).is_empty(),
        "it hangs until the client hangs up"
    );
    assert_eq!(
        stub("m2", &asked).len(),
        48,
        "other machines are not concerned"
    );
}

fn query_valid(paths: &[&str]) -> Vec<u8> {
    let mut request: Vec<u8> = GREETING
        .iter()
        .chain(&[1, 0, 0, paths.len() as u64])
        .flat_map(|n| n.to_le_bytes())
        .collect();
    for path in paths {
        request.extend((path.len() as u64).to_le_bytes());
        request.extend(path.as_bytes());
        request.resize(request.len().next_multiple_of(8), 0);
    }
    request
}

/// Send everything, close, and read to the end.
fn converse(command: &mut Command, request: &[u8]) -> Vec<u8> {
    let mut child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut stdin = child.stdin.take().unwrap();
    let _ = stdin.write_all(request);
    drop(stdin);
    let mut answer = Vec::new();
    child
        .stdout
        .take()
        .unwrap()
        .read_to_end(&mut answer)
        .unwrap();
    child.wait().unwrap();
    answer
}

fn numbers(bytes: &[u8]) -> Vec<u64> {
    bytes
        .chunks(8)
        .map(|chunk| u64::from_le_bytes(chunk.try_into().unwrap()))
        .collect()
}

/// `from | to`; the output of the latter.
fn copy(from: &mut Command, to: &mut Command) -> String {
    let mut from = from.stdout(Stdio::piped()).spawn().unwrap();
    let text = output_of(to.stdin(from.stdout.take().unwrap()));
    assert!(from.wait().unwrap().success());
    text
}
