//! `hydrad explain`: why something does not run, each reason produced for real, each told by the running daemon.

mod common;

use common::{said, stub_jobs, system, Gate, Hydrad, Pg, Site};
use serde_json::Value;

/// Asks until the answer contains all of `words`; then as JSON too.
fn explains(site: &Site, hydrad: &mut Hydrad, what: &str, words: &[&str]) -> Value {
    let mut last = String::new();
    let found = || {
        let told = said(&mut site.hydrad(&["explain", what]).command());
        last = format!("{}{}", told.out, told.err);
        words.iter().all(|word| last.contains(word)).then_some(())
    };
    hydrad.eventually(&format!("explain {what} should say {words:?}"), found);
    assert!(!last.contains("hydrad: "), "{last}");
    let json = said(&mut site.hydrad(&["explain", "--json", what]).command());
    assert_eq!(json.code, 0, "{}", json.err);
    json.json()
}

/// The word for the state of the step at the end of the chain.
fn state(json: &Value) -> &str {
    let step = match &json["now"]["step"] {
        Value::Null => &json["now"],
        step => step,
    };
    step["at"]["state"].as_str().unwrap_or("?")
}

/// A site whose machines are stubs that hold every build at a gate.
fn site(pg: &'static Pg) -> (Site, Gate) {
    let site = Site::new(pg);
    let gate = Gate::new();
    let path = gate.path();
    site.stubs
        .set("all", &[("gate", path.to_str().expect("text"))]);
    (site, gate)
}

fn wait_finished(site: &Site, hydrad: &mut Hydrad, builds: &[i32]) {
    let sql = format!(
        "select not exists (select 1 from Builds where finished = 0 and id = any('{{{}}}'))",
        builds
            .iter()
            .map(ToString::to_string)
            .collect::<Vec<_>>()
            .join(",")
    );
    hydrad.wait_sql(&site.db, &sql);
}

fn job(name: &str, attributes: &str) -> String {
    format!(
        "{{ {name} = derivation {{ name = \"{name}\"; system = \"{}\"; builder = \"/none\"; {attributes} }}; }}\n",
        system()
    )
}

#[test]
fn machines_that_lack_something_and_machines_that_are_full() {
    let (site, mut gate) = site(Pg::shared());
    site.machines(&format!(
        "{}{}",
        Site::stub("m1", 1, 1, "big"),
        Site::stub("m2", 1, 1, "-")
    ));
    let mut hydrad = site.start();
    let kvm = site.queue(&job(
        "wants-kvm",
        "requiredSystemFeatures = [ \"big\" \"kvm\" ];",
    ))[0];
    let json = explains(
        &site,
        &mut hydrad,
        &kvm.to_string(),
        &[&format!(
            "waits for a machine of type {}:big,kvm: no machine supports that; the nearest, ‘m1’, lacks the feature kvm",
            system()
        )],
    );
    assert_eq!(state(&json), "no-machine");
    let at = &json["now"]["step"]["at"];
    assert_eq!(at["nearest"]["machine"], "m1");
    assert_eq!(at["nearest"]["lacks_features"], serde_json::json!(["kvm"]));

    let expression = "let riscv = derivation { name = \"riscv\"; system = \"riscv64-linux\"; builder = \"/none\"; }; in
        { top = derivation { name = \"top\"; system = \"x86_64-linux\"; builder = \"/none\"; inherit riscv; }; }";
    let top = site.queue(expression)[0];
    let json = explains(
        &site,
        &mut hydrad,
        &top.to_string(),
        &[
            "waits for ‘",
            "-riscv.drv’, which is ready",
            "lacks the system type riscv64-linux",
        ],
    );
    assert_eq!(state(&json), "no-machine");
    let chain = json["now"]["step"]["chain"].as_array().expect("a chain");
    assert!(
        chain.len() == 1
            && chain[0]
                .as_str()
                .is_some_and(|drv| drv.ends_with("-riscv.drv")),
        "{chain:?}"
    );

    // Two slots, four jobs: two run, and the others are told who is first.
    let jobs = site.queue(&stub_jobs("j", 4, ""));
    hydrad.eventually("two builds should stand at the gate", || {
        (gate.waiting() == 2).then_some(())
    });
    let last = jobs.iter().max().expect("four").to_string();
    let json = explains(
        &site,
        &mut hydrad,
        &last,
        &[
            "all machines for it are busy (",
            "‘m1’ 1/1",
            "‘m2’ 1/1",
            "number 2 of 2 ready steps",
            "by its lowest build",
        ],
    );
    assert_eq!(state(&json), "all-full");
    let order = &json["now"]["step"]["at"]["order"];
    assert_eq!((&order["position"], &order["of"]), (&2.into(), &2.into()));

    let first = jobs.iter().min().expect("four").to_string();
    let json = explains(&site, &mut hydrad, &first, &["is building on ‘m"]);
    assert_eq!(state(&json), "running");
    let json = explains(
        &site,
        &mut hydrad,
        "m1",
        &[
            "machine ‘m1’: has all slots in use; 1 of 1 slots in use",
            "features big",
            "is building",
        ],
    );
    assert_eq!(json["now"]["runs"].as_array().map(Vec::len), Some(1));
    let nobody = said(&mut site.hydrad(&["explain", "m9"]).command());
    assert_eq!(nobody.code, 1);
    assert!(
        nobody.out.contains("there is no such machine"),
        "{}",
        nobody.out
    );

    // A derivation is explained like a build.
    let drv = json["now"]["runs"][0]["drv"].as_str().expect("a path");
    let base = drv.rsplit('/').next().expect("a base name");
    let json = explains(&site, &mut hydrad, base, &["is building on ‘m1’"]);
    assert_eq!(state(&json), "running");

    // When it is over, the tables tell.
    gate.open();
    wait_finished(&site, &mut hydrad, &jobs);
    let json = explains(
        &site,
        &mut hydrad,
        &first,
        &["ended", "succeeded, after", "log: ", "-j000.drv"],
    );
    assert_eq!(json["past"]["build"]["status"], 0);
    hydrad.terminate();

    // Without a queue runner too, and the answer says so.
    let alone = said(&mut site.hydrad(&["explain", &kvm.to_string()]).command());
    assert_eq!(alone.code, 1, "{}", alone.out);
    assert!(
        alone.out.contains("is queued since") && alone.out.contains("no queue runner answers"),
        "{}",
        alone.out
    );
    assert!(alone.err.contains("does not answer"), "{}", alone.err);
    let nothing = said(&mut site.hydrad(&["explain", "999999"]).command());
    assert!(
        nothing.out.contains("there is no such build"),
        "{}",
        nothing.out
    );
    let left: i64 = site.ask("select count(*) from hydrad.questions");
    assert_eq!(left, 0, "nothing is left of the questions");
}

#[test]
fn what_went_wrong_before() {
    let site = Site::new(Pg::shared());
    site.configure("retry_interval = 1000\n");
    site.machines(&Site::stub("m1", 1, 1, "-"));
    site.stubs.set("m1", &[("status", "6")]);
    let mut hydrad = site.start();
    let flaky = site.queue(&job("flaky", ""))[0].to_string();
    let json = explains(
        &site,
        &mut hydrad,
        &flaky,
        &[
            "is tried again in 1",
            "(failed tries: 1), after an error on ‘m1’",
        ],
    );
    assert_eq!(state(&json), "deferred");
    assert_eq!(json["now"]["step"]["at"]["last_error"]["machine"], "m1");

    site.stubs.set("m1", &[("fault", "die-in-build")]);
    let poor = site.queue(&job("poor", ""))[0].to_string();
    let words = [
        "no machine for it takes anything: ‘m1’ is set aside for ",
        "after a failure: 'm1', while building: the connection ended",
    ];
    let json = explains(&site, &mut hydrad, &poor, &words);
    assert_eq!(state(&json), "none-takes");
    let json = explains(
        &site,
        &mut hydrad,
        "m1",
        &["machine ‘m1’: is set aside for ", "the connection ended"],
    );
    assert_eq!(json["now"]["standing"]["state"], "set aside");
    assert_eq!(json["now"]["errors"].as_array().map(Vec::len), Some(1));

    // A dependency that fails once fails every build that needs it, here and later.
    site.machines(&format!(
        "{}{}",
        Site::stub("m1", 1, 1, "-"),
        Site::stub("m2", 1, 1, "-")
    ));
    site.stubs.set("m2", &[("status", "3")]);
    let needs_bad = |name: &str| {
        format!(
            "let bad = derivation {{ name = \"bad\"; system = \"x86_64-linux\"; builder = \"/none\"; }}; in
             {{ {name} = derivation {{ name = \"{name}\"; system = \"x86_64-linux\"; builder = \"/none\"; inherit bad; }}; }}"
        )
    };
    let first = site.queue(&needs_bad("first"));
    wait_finished(&site, &mut hydrad, &first);
    let json = explains(
        &site,
        &mut hydrad,
        &first[0].to_string(),
        &[
            "dependency failed",
            "-bad.drv’, ended on ‘m2’: failed",
            "log: ",
        ],
    );
    assert_eq!(json["past"]["build"]["status"], 2);
    let second = site.queue(&needs_bad("second"));
    wait_finished(&site, &mut hydrad, &second);
    let json = explains(
        &site,
        &mut hydrad,
        &second[0].to_string(),
        &["dependency failed", "-bad.drv’, ended", "counts as failed"],
    );
    assert_eq!(
        json["past"]["cached_failures"].as_array().map(Vec::len),
        Some(1)
    );

    // A derivation that is collected before its turn.
    let gone = job("gone", "");
    hydrad.terminate();
    let gone = site.queue(&gone);
    let drv: String = site.ask(&format!(
        "select drvPath from Builds where id = {}",
        gone[0]
    ));
    let removed = site
        .store
        .command("nix-store")
        .args(["--delete", "--ignore-liveness", &drv])
        .output();
    assert!(removed.expect("nix-store should start").status.success());
    let mut hydrad = site.start();
    wait_finished(&site, &mut hydrad, &gone);
    explains(
        &site,
        &mut hydrad,
        &gone[0].to_string(),
        &["aborted", "garbage-collected before it could be built"],
    );
}

#[test]
fn what_an_operator_ordered() {
    let (site, mut gate) = site(Pg::shared());
    site.configure("max_unsupported_time = 0\n");
    site.machines(&Site::stub("m1", 2, 1, "-"));
    let mut hydrad = site.start();
    let hydrad_says = |args: &[&str]| said(&mut site.hydrad(args).env("USER", "alice").command());
    let running = site.queue(&job("running", ""));
    hydrad.eventually("a build should stand at the gate", || {
        (gate.waiting() == 1).then_some(())
    });
    let wrong = hydrad_says(&["drain", "m7"]);
    assert_eq!(wrong.code, 2, "{}", wrong.out);
    assert!(wrong.err.contains("knows no machine 'm7'"), "{}", wrong.err);
    let wrong = hydrad_says(&["drain", "m1", "--until", "yesterday"]);
    assert!(wrong.err.contains("that is over"), "{}", wrong.err);
    let drained = hydrad_says(&["drain", "m1", "--until", "2h", "--reason", "new disk"]);
    assert_eq!(drained.code, 0, "{}", drained.err);
    explains(
        &site,
        &mut hydrad,
        "m1",
        &["machine ‘m1’: was drained by alice", "(1 step still runs)"],
    );
    let waiting = site.queue(&job("waiting", ""));
    let id = waiting[0].to_string();
    let words = [
        "no machine for it takes anything: ‘m1’ was drained by alice",
        "for 1 h 59 min more: new disk",
    ];
    let json = explains(&site, &mut hydrad, &id, &words);
    assert_eq!(state(&json), "none-takes");
    assert_eq!(gate.waiting(), 1, "nothing new was started");

    // A queue runner that is started later obeys from its first step on.
    hydrad.kill_9();
    let mut hydrad = site.start();
    explains(&site, &mut hydrad, &id, &words);
    let enabled = hydrad_says(&["enable", "m1"]);
    assert_eq!(enabled.code, 0, "{}", enabled.err);
    hydrad.eventually("both builds should stand at the gate", || {
        (gate.waiting() == 3).then_some(())
    });

    // Disabled: the running steps leave, and go elsewhere.
    site.machines(&format!(
        "{}{}",
        Site::stub("m1", 2, 1, "-"),
        Site::stub("m2", 2, 1, "-")
    ));
    hydrad.wait_log("adding machine 'm2'");
    let disabled = hydrad_says(&["disable", "m1"]);
    assert_eq!(disabled.code, 0, "{}", disabled.err);
    hydrad.eventually("both builds should stand at the gate again", || {
        (gate.waiting() == 5).then_some(())
    });
    gate.open();
    site.wait_all_finished(&mut hydrad);
    let all = [running[0], waiting[0]].map(|id| id.to_string()).join(",");
    let rows = site.rows(&format!(
        "select distinct machine, status, coalesce(errorMsg, '') from BuildSteps where build in ({all}) and machine = 'm2'
         or errorMsg like 'stopped:%'"
    ));
    assert_eq!(rows.len(), 2, "{rows:?}");
    assert!(
        rows[0].starts_with("m1 3 stopped: alice disabled ‘m1’"),
        "{rows:?}"
    );
    assert_eq!(rows[1], "m2 0 ");
    site.assert_complete();
}

#[test]
fn the_database_is_away_and_then_a_disk_is_nearly_full() {
    let pg = Pg::start();
    let site = Site::with_db(pg.db());
    let port = common::free_port();
    site.configure(&format!(
        "status_address = 127.0.0.1:{port}\nfree_space_interval = 1\n"
    ));
    site.machines(&Site::stub("m1", 1, 1, "-"));
    let gate = Gate::new();
    let path = gate.path();
    site.stubs
        .set("m1", &[("gate", path.to_str().expect("text"))]);
    let mut hydrad = site.start();
    let jobs = site.queue(&stub_jobs("j", 3, ""));
    hydrad.eventually("a build should stand at the gate", || {
        (gate.waiting() == 1).then_some(())
    });
    // The second one may be on its way before anybody notices.
    let third = jobs[2].to_string();

    // The way of the question is what is broken, so it goes another one.
    pg.stop_server();
    let mut gate = gate;
    gate.open();
    hydrad.wait_log("the database is away");
    let mut last = String::new();
    hydrad.eventually("explain should say that the database is away", || {
        let told = said(&mut site.hydrad(&["explain", &third]).command());
        last = format!("{}{}", told.out, told.err);
        let words = [
            "nothing is started: PostgreSQL is away: ",
            "the database cannot be asked: ",
            &format!("asked at http://127.0.0.1:{port} instead"),
        ];
        (told.code == 0 && words.iter().all(|word| last.contains(word))).then_some(())
    });
    let json = said(&mut site.hydrad(&["explain", "--json", &third]).command());
    let json = json.json();
    assert_eq!(state(&json), "held");
    assert_eq!(json["now"]["step"]["holds"][0]["hold"], "database-away");
    let machine = said(&mut site.hydrad(&["explain", "m1"]).command());
    assert!(machine.out.contains("machine ‘m1’: "), "{}", machine.out);
    pg.start_server();
    wait_finished(&site, &mut hydrad, &jobs);

    // More room is wanted than any disk has; what is free is asked of the real one.
    site.configure(&format!(
        "status_address = 127.0.0.1:{port}\nfree_space_interval = 1\nmin_free_space = 1000000T\n"
    ));
    hydrad.hang_up();
    hydrad.wait_log("nothing is started until there is more room");
    let later = site.queue(&stub_jobs("k", 1, ""))[0];
    let json = explains(
        &site,
        &mut hydrad,
        &later.to_string(),
        &["nothing is started: only ", "less than min_free_space ("],
    );
    assert_eq!(state(&json), "held");
    site.configure("min_free_space = 0\n");
    hydrad.hang_up();
    wait_finished(&site, &mut hydrad, &[later]);
    hydrad.terminate();

    // Nobody is there: the command says so, and what it tried.
    pg.stop_server();
    let alone = said(&mut site.hydrad(&["explain", "1"]).command());
    assert_eq!(alone.code, 2, "{}", alone.out);
    assert!(
        alone.err.contains("the database cannot be asked: ")
            && alone.err.contains("status_address = none"),
        "{}",
        alone.err
    );
    pg.start_server();
}
