//! Machines from the operator's side: what `hydrad machines` shows and tries, and what becomes of machines that are short of
//! room or break whatever is built on them.

mod common;

use common::{said, stub_jobs, system, FarMachine, Hydrad, NixStore, Pg, Said, Site, TestDir};
use serde_json::Value;

/// `hydrad machines test --json NAMES` with a store and a machines file and nothing else: no database, no HYDRA_DATA.
fn trial(store: &NixStore, file: &str, env: &[(String, String)], names: &[&str]) -> Said {
    let dir = TestDir::new(store.owner());
    let machines = dir.file("machines", file, store.owner());
    let args = [&["machines", "test", "--json"], names].concat();
    let scratch = dir.sub("tmp", store.owner());
    let told = said(
        &mut Hydrad::run(&args)
            .store(store)
            .env("NIX_REMOTE_SYSTEMS", machines.display().to_string())
            .env("TMPDIR", scratch.display().to_string())
            .envs(env.iter().cloned())
            .command(),
    );
    let left: Vec<_> = std::fs::read_dir(&scratch).expect("a folder").collect();
    assert!(left.is_empty(), "what was made here is removed: {left:?}");
    told
}

/// `what: result` of each check of a machine.
fn results(answer: &Value, machine: usize) -> Vec<String> {
    let checks = answer["machines"][machine]["checks"].as_array();
    let checks = checks.expect("checks");
    let word = |value: &Value| value.as_str().expect("a word").to_owned();
    checks
        .iter()
        .map(|check| format!("{}: {}", word(&check["what"]), word(&check["result"])))
        .collect()
}

fn check<'a>(answer: &'a Value, machine: usize, what: &str) -> &'a Value {
    let checks = answer["machines"][machine]["checks"].as_array();
    let found = checks.expect("checks").iter().find(|c| c["what"] == what);
    found.unwrap_or_else(|| panic!("{what} in {answer}"))
}

fn test_paths(folder: &std::path::Path) -> Vec<String> {
    let entries = std::fs::read_dir(folder).expect("a store");
    let names = entries.map(|entry| {
        entry
            .expect("an entry")
            .file_name()
            .to_string_lossy()
            .into_owned()
    });
    names
        // Nix leaves an empty lock file behind where a build failed.
        .filter(|name| name.contains("hydrad-machine-test") && !name.ends_with(".lock"))
        .collect()
}

#[test]
fn a_machine_behind_ssh_is_tried_from_connecting_to_cleaning_up() {
    let store = NixStore::new().with_features(&["big"]);
    store.store(&["--init"]);
    let far = FarMachine::new(&store, "far");
    let file = format!(
        "far {0} - 2 1 - -\nlocalhost {0} - 1 1 big -\nssh://far {0},riscv64-linux - 1 1 nonsense -\n",
        system()
    );
    let first = trial(&store, &file, &far.env(), &["far", "localhost"]);
    assert_eq!(first.code, 0, "{}{}", first.out, first.err);
    let answer = first.json();
    assert_eq!(answer["ok"], true);
    let build = format!("build {}: ok", system());
    assert_eq!(
        results(&answer, 0),
        [
            "connection: ok",
            "protocol: ok",
            "version: ok",
            "disk: ok",
            "trust: ok",
            "send: ok",
            &build,
            "features: skipped",
            "receive: ok",
            "clean-up: ok",
        ]
    );
    let says = |what: &str, words: &str| {
        let text = check(&answer, 0, what)["text"].as_str().expect("a text");
        assert!(text.contains(words), "{what}: {text}");
    };
    says("version", "nix-store (Nix) 2.");
    says("protocol", "nix-store --serve 2.");
    says("disk", "free in ");
    assert_eq!(
        results(&answer, 1)[4..],
        [
            "trust: ok",
            "send: skipped",
            &build,
            "features: ok",
            "receive: ok",
            "clean-up: ok"
        ]
    );
    assert_eq!(test_paths(&far.store.physical_dir()), [""; 0]);
    assert_eq!(test_paths(&store.store_dir()), [""; 0]);

    // What the machines file promises and the machine does not have is found, and told what to do about.
    let wrong = trial(&store, &file, &far.env(), &["ssh://far"]);
    assert_eq!(wrong.code, 1, "{}{}", wrong.out, wrong.err);
    let answer = wrong.json();
    for what in ["build riscv64-linux", "features"] {
        let check = check(&answer, 0, what);
        assert_eq!(check["result"], "failed", "{check}");
        let advice = check["advice"].as_str().expect("an advice");
        assert!(advice.contains("take that off its line"), "{check}");
    }
    assert_eq!(
        check(&answer, 0, &format!("build {}", system()))["result"],
        "ok"
    );
    assert_eq!(check(&answer, 0, "receive")["result"], "ok");
    assert_eq!(test_paths(&far.store.physical_dir()), [""; 0]);

    let nobody = trial(&store, &file, &far.env(), &["fare"]);
    assert_eq!(nobody.code, 2);
    assert!(
        nobody.err.contains("no machine 'fare'") && nobody.err.contains("far, localhost"),
        "{}",
        nobody.err
    );
}

#[test]
fn a_machine_that_cannot_be_built_on_says_what_to_do() {
    let site = Site::new(Pg::shared());
    site.machines(&format!(
        "{}{}{}",
        Site::stub("closed", 1, 1, "-"),
        Site::stub("full", 1, 1, "-"),
        Site::stub("chatty", 1, 1, "-")
    ));
    site.stubs.set("closed", &[("fault", "refuse-in-connect")]);
    site.stubs.set("full", &[("fault", "die-in-import")]);
    site.stubs.set("chatty", &[("fault", "garbage-greeting")]);
    let tried = said(&mut site.hydrad(&["machines", "test", "--json"]).command());
    assert_eq!(tried.code, 1, "{}", tried.err);
    let answer = tried.json();
    for (machine, failed, words, advice) in [
        (0, "connection", "Connection refused", "does sshd run there"),
        (1, "send", "the stub dies in import", "nix-store --verify"),
        (
            2,
            "connection",
            "Welcome to this machine",
            "something prints at login",
        ),
    ] {
        let results = results(&answer, machine);
        let bad: Vec<&String> = results.iter().filter(|r| r.ends_with(": failed")).collect();
        assert_eq!(bad, [&format!("{failed}: failed")], "{results:?}");
        let last = results.iter().rev().find(|r| r.starts_with("receive"));
        assert_eq!(last.map(String::as_str), Some("receive: skipped"));
        let check = check(&answer, machine, failed);
        assert!(
            check["text"].as_str().is_some_and(|t| t.contains(words)),
            "{check}"
        );
        assert!(
            check["advice"].as_str().is_some_and(|t| t.contains(advice)),
            "{check}"
        );
    }
    // For people: a line for each check, and what to try below what failed.
    let text = said(&mut site.hydrad(&["machines", "test", "closed"]).command());
    assert_eq!(text.code, 1);
    assert!(
        text.out.starts_with("closed\n  failed   connection")
            && text.out.contains("try: does sshd run"),
        "{}",
        text.out
    );
}

#[test]
fn machines_are_shown_with_their_standing_and_without_a_queue_runner_from_the_files() {
    let site = Site::new(Pg::shared());
    site.configure("retry_interval = 600\n");
    let lines = ["m1", "m2", "m3"].map(|name| Site::stub(name, 2, 1, "big"));
    site.machines(&lines.concat());
    site.stubs.set("m3", &[("fault", "refuse-in-connect")]);
    let before = said(&mut site.hydrad(&["machines", "--json"]).command());
    assert_eq!(before.code, 1, "{}", before.out);
    assert!(before.err.contains("does not answer"), "{}", before.err);
    assert_eq!(before.json()["machines"][1]["state"], "unknown");

    let mut hydrad = site.start();
    let drained = said(
        &mut site
            .hydrad(&["drain", "m2", "--reason", "new disk"])
            .command(),
    );
    assert_eq!(drained.code, 0, "{}", drained.err);
    hydrad.wait_log("‘m2’ was drained by");
    let builds = site.queue(&stub_jobs("j", 6, ""));
    hydrad.wait_log("will disable machine ‘m3’");
    site.wait_all_finished(&mut hydrad);
    assert_eq!(builds.len(), 6);

    let shown = said(&mut site.hydrad(&["machines", "--json"]).command());
    assert_eq!(shown.code, 0, "{}", shown.err);
    let answer = shown.json();
    let machine = |name: &str| {
        let machines = answer["machines"].as_array().expect("machines");
        machines
            .iter()
            .find(|m| m["name"] == name)
            .expect("it")
            .clone()
    };
    assert_eq!(machine("m1")["state"], "ready");
    assert_eq!(machine("m1")["steps_done"], 6);
    assert_eq!(machine("m2")["state"], "drained");
    assert_eq!(machine("m2")["takes_steps"], false);
    assert_eq!(machine("m2")["order"]["reason"], "new disk");
    assert_eq!(machine("m3")["state"], "set aside");
    assert!(machine("m3")["last_error"]
        .as_str()
        .is_some_and(|e| e.contains("Connection refused")));
    let text = said(&mut site.hydrad(&["machines"]).command()).out;
    assert!(
        text.contains("‘m2’ was drained by") && text.contains("‘m3’ is set aside for"),
        "{text}"
    );

    hydrad.terminate();
    let alone = said(&mut site.hydrad(&["machines", "--json"]).command());
    assert_eq!(alone.code, 1);
    assert_eq!(alone.json()["machines"][1]["state"], "drained");
}

#[test]
fn a_full_disk_here_pauses_everything_and_one_on_a_machine_that_machine() {
    let site = Site::new(Pg::shared());
    site.configure("min_free_space = 16M\nmachine_min_free_space = 1G\nfree_space_interval = 1\n");
    // The first one is taken as long as it takes anything.
    site.machines(&[Site::stub("m1", 1, 9, "-"), Site::stub("m2", 1, 1, "-")].concat());
    let logs = site.data().join("build-logs");
    std::fs::create_dir(&logs).expect("a folder");
    let mut hydrad = site.hydrad(&["run"]).on_tmpfs(&logs, "32m").start();
    hydrad.wait_log("ready: ");
    let ask = |args: &[&str]| said(&mut site.hydrad(args).command());

    // Here.
    let seen = format!("/proc/{}/root{}/filler", hydrad.pid(), logs.display());
    // By the user whom the file system belongs to.
    let mut filler = site.store.owner().command("dd");
    filler.args(["if=/dev/zero", "bs=1M", "count=24", &format!("of={seen}")]);
    let filled = filler.output().expect("start dd");
    assert!(filled.status.success(), "{filled:?}");
    hydrad.wait_log("nothing is started until there is more room: only ");
    let first = site.queue(&stub_jobs("a", 1, ""))[0].to_string();
    let held = "nothing is started: only ";
    hydrad.eventually("explain should name the disk", || {
        ask(&["explain", &first]).out.contains(held).then_some(())
    });
    let explained = ask(&["explain", "--json", &first]).json();
    assert_eq!(explained["now"]["step"]["at"]["state"], "held");
    assert_eq!(explained["now"]["step"]["holds"][0]["hold"], "disk-low");
    let status = ask(&["status"]);
    assert!(
        status.out.contains("nothing is started since") && status.out.contains("(build logs)"),
        "{}",
        status.out
    );
    assert_eq!(site.ask::<i64>("select count(*) from BuildSteps"), 0);
    std::fs::remove_file(&seen).expect("make room");
    hydrad.wait_log("there is room again on this host");
    site.wait_all_finished(&mut hydrad);

    // On a machine, which is asked after it had a step.
    site.stubs.set("m1", &[("free", "1024")]);
    site.queue(&stub_jobs("b", 1, ""));
    let line = hydrad.wait_log("nothing is started on ‘m1’");
    assert!(line.contains("only 1 MiB are free in "), "{line}");
    let shown = ask(&["machines", "--json"]).json();
    let m1 = &shown["machines"][0];
    assert_eq!(
        (&m1["name"], &m1["state"]),
        (&"m1".into(), &"low disk".into())
    );
    assert_eq!(m1["free_bytes"], 1 << 20);
    assert_eq!(m1["nix_version"], "nix-store (Nix) 2.8.1");
    site.wait_all_finished(&mut hydrad);
    let later = site.queue(&stub_jobs("c", 3, ""));
    site.wait_all_finished(&mut hydrad);
    let on_m2 = format!(
        "select count(*) from BuildSteps where machine = 'm2' and build >= {}",
        later[0]
    );
    assert_eq!(site.ask::<i64>(&on_m2), 3);

    // Both end by themselves, and nothing has failed.
    site.stubs.set("m1", &[("free", "2000000")]);
    hydrad.wait_log("‘m1’ has enough free space again");
    site.assert_complete();
    assert_eq!(
        site.ask::<i64>("select count(*) from Builds where buildStatus <> 0"),
        0
    );
}

#[test]
fn a_machine_that_breaks_what_is_built_there_is_set_aside_and_fails_no_build() {
    let site = Site::new(Pg::shared());
    site.configure("retry_interval = 600\n");
    site.machines(&[Site::stub("bad", 4, 9, "-"), Site::stub("good", 1, 1, "-")].concat());
    // Not in Nix's message: it is found in the log.
    let words = "cp: error writing '/build/x': No space left on device";
    site.stubs.set("bad", &[("status", "3"), ("say", words)]);
    let mut hydrad = site.start();
    site.queue(&stub_jobs("j", 6, ""));
    let line = hydrad.wait_log("will disable machine ‘bad’");
    assert!(
        line.contains(
            "3 different steps failed there alike within an hour (no space left on device)"
        ),
        "{line}"
    );
    site.wait_all_finished(&mut hydrad);
    site.assert_complete();
    assert_eq!(
        site.ask::<i64>("select count(*) from Builds where buildStatus <> 0"),
        0
    );
    assert_eq!(site.ask::<i64>("select count(*) from FailedPaths"), 0);
    let tries =
        "select count(*) between 3 and 6 from BuildSteps where machine = 'bad' and status = 1";
    assert!(site.ask::<bool>(tries));
    let explained = said(&mut site.hydrad(&["explain", "bad"]).command());
    assert!(
        explained.out.contains("is set aside for") && explained.out.contains("failed there alike"),
        "{}",
        explained.out
    );

    // One that says so of itself fails, after a second opinion and no more, and no machine suffers for it.
    let site = Site::new(Pg::shared());
    site.machines(&[Site::stub("m1", 1, 9, "-"), Site::stub("m2", 1, 1, "-")].concat());
    site.stubs.set("all", &[("say", words)]);
    let mut hydrad = site.start();
    for name in ["own", "other", "third", "fourth"] {
        site.queue(&stub_jobs(name, 1, "stubStatus = 3;"));
        site.wait_all_finished(&mut hydrad);
    }
    assert_eq!(
        site.ask::<i64>("select count(*) from Builds where buildStatus <> 1"),
        0
    );
    let tries = "select string_agg(distinct machine, ' ' order by machine) || ' ' || count(*) from BuildSteps where status = 1";
    assert_eq!(site.ask::<String>(tries), "m1 m2 8");
    assert_eq!(site.ask::<i64>("select count(*) from FailedPaths"), 4);
    assert!(
        !hydrad.log().contains("will disable machine"),
        "{}",
        hydrad.log()
    );
}
