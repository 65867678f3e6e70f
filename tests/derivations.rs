//! Derivations that need more than to be built once: those whose output paths are known only after the build, with those
//! that depend on them (rows, realisations and what Nix itself makes of both, the experimental feature on), and those that
//! are built again to see whether the outputs are the same.

mod common;

use std::fs;
use std::os::unix::fs::PermissionsExt;

use hydrad::nix::realisation::Realisation;
use hydrad::nix::signing::PublicKey;

use common::{output_of, FarMachine, Farm, Hydrad, NixStore, RunAs, TestDir};

/// Jobs named by letters, so that `hydrad enqueue` numbers them in this order. `seed` changes derivations, but nothing
/// that is built.
fn jobs(seed: &str) -> String {
    format!(
        r#"let
          mk = name: attrs: script: derivation ({{
            inherit name; system = builtins.currentSystem; builder = "/bin/bash";
            PATH = "/usr/bin:/bin"; args = [ "-ec" script ];
          }} // attrs);
          ca = {{ __contentAddressed = true; outputHashMode = "recursive"; outputHashAlgo = "sha256"; }};
        in rec {{
          a_base = mk "base" (ca // {{ seed = "{seed}"; }}) "echo building base; echo base > $out";
          b_top = mk "top" (ca // {{ base = a_base; outputs = [ "out" "dev" ]; }})
            "echo building top; echo $base > $dev; echo $dev > $out";
          c_deferred = mk "deferred" {{ base = a_base; }} "echo building deferred; cat $base > $out";
          d_last = mk "last" {{ __structuredAttrs = true; deep = c_deferred; tools = [ b_top.dev a_base ]; }}
            ". ./.attrs.sh; cat $deep > \${{outputs[out]}}; echo \${{tools[@]}} >> \${{outputs[out]}}";
          e_all = mk "all" {{ _hydraAggregate = true; constituents = [ b_top.drvPath d_last.drvPath ]; }}
            "echo all > $out";
        }}"#
    )
}

struct Scene {
    store: NixStore,
    farm: Farm,
    hydrad: Hydrad,
}

impl Scene {
    fn new(store: NixStore, farm: Farm, env: &[(String, String)]) -> Scene {
        let mut hydrad = farm.run(env);
        hydrad.wait_log("ready: ");
        Scene {
            store,
            farm,
            hydrad,
        }
    }

    /// Queue these jobs, and wait for their end.
    fn build(&mut self, expression: &str) -> Vec<i32> {
        let file = self
            .farm
            .dir()
            .file("jobs.nix", expression, self.store.owner());
        let builds = self.farm.enqueue(&[file.to_str().unwrap()]);
        self.farm.wait_ended(&mut self.hydrad, &builds);
        builds
    }

    /// The builds' ends and steps. A derivation is named without its hash; `*` marks one that is not its build's own.
    fn picture(&self, builds: &[i32]) -> String {
        let sql = "
            select b.job || ': status ' || b.buildStatus || ' cached ' || b.isCachedBuild || coalesce((
                   select string_agg(E'\n  ' || s.stepnr || ' '
                       || regexp_replace(s.drvPath, '^.*/[a-z0-9]{32}-(.*)\\.drv$', '\\1')
                       || case when s.drvPath = b.drvPath then '' else '*' end
                       || ' status ' || s.status || ' on ' || case s.machine when '' then 'none' else s.machine end
                       || coalesce(' to step ' || r.stepnr, '')
                       || ' outputs ' || (select string_agg(o.name || case when o.path is null then '?' else '' end, ' ' order by o.name)
                                          from BuildStepOutputs o where o.build = s.build and o.stepnr = s.stepnr)
                       , '' order by s.stepnr)
                   from BuildSteps s
                   left join BuildSteps r on r.build = s.build and r.drvPath like '%/' || (to_jsonb(s) ->> 'resolveddrvpath')
                   where s.build = b.id), '')
            from Builds b where b.id = any($1) order by b.id";
        let rows = self.farm.client().query(sql, &[&builds]).expect(sql);
        let texts: Vec<Option<String>> = rows.iter().map(|row| row.get(0)).collect();
        let texts = texts.into_iter().map(|text| text.unwrap_or_default());
        texts.collect::<Vec<_>>().join("\n")
    }

    /// The path of a build's output as its row says.
    fn output(&self, build: i32, name: &str) -> String {
        let sql = "select path from BuildOutputs where build = $1 and name = $2";
        let row = self.farm.client().query_one(sql, &[&build, &name]);
        row.expect("an output")
            .get::<_, Option<String>>(0)
            .expect("a path")
    }
}

fn local_store() -> NixStore {
    NixStore::owned_by(RunAs::Unprivileged).content_addressed()
}

fn machine(name: &str) -> String {
    format!("{name} {} - 2 1 ca-derivations -\n", common::system())
}

/// The picture of a first run at schema 87.
fn built_on(machine: &str) -> String {
    let step = |job: &str, name: &str, outputs: &str, after: &str| {
        let open = outputs.replace(' ', "? ");
        format!(
            "{job}: status 0 cached 0\n  1 {name} status 13 on none to step 2 outputs {open}?\n  \
             2 {name}* status 0 on {machine} outputs {outputs}{after}"
        )
    };
    [
        format!("a_base: status 0 cached 0\n  1 base status 0 on {machine} outputs out"),
        step("b_top", "top", "dev out", ""),
        step("c_deferred", "deferred", "out", ""),
        step("d_last", "last", "out", ""),
        step("e_all", "all", "out", ""),
    ]
    .join("\n")
}

/// Nix itself finds the outputs of these derivations, with nothing left to build.
fn nix_finds(scene: &Scene, builds: &[i32]) {
    for &build in builds {
        let sql = "select drvPath from Builds where id = $1";
        let row = scene.farm.client().query_one(sql, &[&build]).expect(sql);
        let drv: String = row.get(0);
        let mut command = scene.store.command("nix-store");
        command.args(["-r", &drv, "--option", "max-jobs", "0"]);
        let found = output_of(&mut command);
        let mut found: Vec<&str> = found.lines().collect();
        found.sort_unstable();
        let sql = "select path from BuildOutputs where build = $1 order by path";
        let rows = scene.farm.client().query(sql, &[&build]).expect(sql);
        let paths: Vec<String> = rows.iter().map(|row| row.get(0)).collect();
        assert_eq!(found, paths, "of {drv}");
    }
}

#[test]
fn what_is_built_is_known_to_nix_and_not_built_again() {
    let store = local_store();
    let farm = Farm::new(&store).with_machines(&machine("localhost"));
    let mut scene = Scene::new(store, farm, &[]);
    let first = scene.build(&jobs("one"));
    assert_eq!(
        scene.picture(&first),
        built_on("localhost"),
        "{}",
        scene.hydrad.log()
    );
    nix_finds(&scene, &first);
    let (base, dev) = (scene.output(first[0], "out"), scene.output(first[1], "dev"));
    let last = fs::read_to_string(scene.output(first[3], "out")).unwrap();
    assert_eq!(last, format!("base\n{dev} {base}\n"));
    // The derivation that was built in a step's place is in the store, and has the log.
    let sql = "select s.drvPath from BuildSteps s where s.build = $1 and s.status = 0";
    let row = scene.farm.client().query_one(sql, &[&first[1]]).expect(sql);
    let resolved: String = row.get(0);
    assert!(scene.store.is_valid(&resolved));
    let log = fs::read_to_string(scene.farm.log_path(&resolved)).expect("a log");
    assert_eq!(log, "building top\n");
    let mut command = scene.farm.command(&["log", &first[1].to_string()]);
    assert_eq!(output_of(&mut command), "building top");

    // Other derivations, which turn out to be built already once their input is: nothing is built but that.
    let second = scene.build(&jobs("two"));
    // (The aggregate has the others' derivations in it, so it is another one when it is resolved, too.)
    let mut expected = built_on("localhost");
    for job in ["b_top", "c_deferred", "d_last"] {
        let done = |cached: u32| format!("{job}: status 0 cached {cached}");
        expected = expected.replace(&done(0), &done(1));
    }
    assert_eq!(scene.picture(&second), expected, "{}", scene.hydrad.log());
    nix_finds(&scene, &second);
    assert_eq!(
        scene.output(second[3], "out"),
        scene.output(first[3], "out")
    );
    assert_eq!(
        scene
            .hydrad
            .log()
            .matches("resolves to what was built before")
            .count(),
        3
    );

    // And none of this is forgotten.
    assert!(scene.hydrad.terminate().success());
    scene.hydrad = scene.farm.run(&[]);
    scene.hydrad.wait_log("ready: ");
    let third = scene.build(&jobs("two"));
    let cached = ["a_base", "b_top", "c_deferred", "d_last", "e_all"]
        .map(|job| format!("{job}: status 0 cached 1"));
    assert_eq!(scene.picture(&third), cached.join("\n"));
}

#[test]
fn what_two_steps_are_resolved_into_is_built_once_also_after_a_crash() {
    let store = local_store();
    let farm = Farm::new(&store).with_machines(&machine("localhost").replace(" 2 1 ", " 4 1 "));
    let gate = store.dir().join("open");
    let jobs = |seed: &str| {
        format!(
            r#"let
              mk = name: attrs: script: derivation ({{
                inherit name; system = builtins.currentSystem; builder = "/bin/bash";
                PATH = "/usr/bin:/bin"; args = [ "-ec" script ];
                __contentAddressed = true; outputHashMode = "recursive"; outputHashAlgo = "sha256";
              }} // attrs);
            in rec {{
              a_base = mk "base" {{ seed = "{seed}"; }} "echo base > $out";
              b_top = mk "top" {{ base = a_base; }}
                "echo waiting; while ! test -e {gate}; do sleep 0.05; done; echo open; cat $base > $out";
              c_fails = mk "fails" {{ base = a_base; }} "echo failing $base; exit 1";
              d_above = mk "above" {{ fails = c_fails; }} "cat $fails > $out";
            }}"#,
            gate = gate.display()
        )
    };
    let mut scene = Scene::new(store, farm, &[]);
    let queue = |scene: &Scene, seed: &str| {
        let file = scene
            .farm
            .dir()
            .file(seed, &jobs(seed), scene.store.owner());
        scene.farm.enqueue(&[file.to_str().unwrap()])
    };
    let (one, two) = (queue(&scene, "one"), queue(&scene, "two"));
    let both_wait =
        "select count(*) = 2 from BuildSteps where busy <> 0 and drvPath like '%-top.drv'";
    scene.hydrad.wait_sql(&scene.farm.db, both_wait);
    scene.hydrad.kill_9();
    scene.hydrad = scene.farm.run(&[]);
    scene.hydrad.wait_log("ready: ");
    scene.hydrad.wait_sql(&scene.farm.db, both_wait);
    fs::write(&gate, "").expect("open the gate");
    let all: Vec<i32> = one.iter().chain(&two).copied().collect();
    scene.farm.wait_ended(&mut scene.hydrad, &all);
    let ends = [0, 0, 1, 2, 0, 0, 1, 2].map(Some);
    assert_eq!(scene.farm.statuses(&all), ends, "{}", scene.hydrad.log());
    let tops = [one[1], two[1]];
    assert_eq!(scene.output(tops[0], "out"), scene.output(tops[1], "out"));
    let ask = |sql: &str| -> Vec<i32> {
        let rows = scene.farm.client().query(sql, &[&&tops[..]]).expect(sql);
        rows.iter().map(|row| row.get(0)).collect()
    };
    let cached = ask("select isCachedBuild from Builds where id = any($1) order by isCachedBuild");
    assert_eq!(cached, [0, 1], "{}", scene.hydrad.log());
    // Each attempt is a row, and what they were resolved into is said once for each build.
    let statuses =
        ask("select status from BuildSteps where build = any($1) order by build, stepnr");
    assert_eq!(statuses, [13, 3, 0, 13, 3, 0], "{}", scene.hydrad.log());
    let mut command = scene.farm.command(&["log", &one[1].to_string()]);
    assert_eq!(output_of(&mut command), "waiting\nopen");
    // A failure has its log under what was built, too, and ends what depends on it.
    let mut command = scene.farm.command(&["log", &one[2].to_string()]);
    let log = output_of(&mut command);
    assert!(
        log.starts_with("failing ") && log.ends_with("-base"),
        "{log}"
    );
    // So the past of a build is that of what was built in its place.
    let mut explain = scene.farm.command(&["explain", &one[2].to_string()]);
    let said = output_of(&mut explain);
    assert!(
        said.contains("ended on ‘localhost’: failed after") && !said.contains("resolved"),
        "{said}"
    );
    nix_finds(&scene, &tops);
}

#[test]
fn a_machine_behind_ssh_builds_them() {
    let store = local_store();
    let far = FarMachine::new(&store, "builder");
    far.store.content_addressed();
    let farm = Farm::new(&store).with_machines(&machine("builder"));
    let mut scene = Scene::new(store, farm, &far.env());
    let builds = scene.build(&jobs("one"));
    assert_eq!(
        scene.picture(&builds),
        built_on("builder"),
        "{}",
        scene.hydrad.log()
    );
    nix_finds(&scene, &builds);
    let again = scene.build(&jobs("two"));
    assert_eq!(
        scene.output(again[3], "out"),
        scene.output(builds[3], "out")
    );
}

#[test]
fn a_machine_without_the_feature_is_at_fault_and_not_the_build() {
    let store = local_store();
    let far = FarMachine::new(&store, "builder");
    let farm = Farm::new(&store).with_machines(&machine("builder"));
    let mut hydrad = farm.run(&far.env());
    hydrad.wait_log("ready: ");
    let file = farm.dir().file("jobs.nix", &jobs("one"), store.owner());
    let builds = farm.enqueue(&[file.to_str().unwrap()]);
    let failed = "select exists (select 1 from BuildSteps where status = 3)";
    hydrad.wait_sql(&farm.db, failed);
    let sql = "select errorMsg from BuildSteps where status = 3 order by stepnr limit 1";
    let message: String = farm.client().query_one(sql, &[]).expect(sql).get(0);
    assert!(message.contains("ca-derivations"), "{message}");
    println!("{message}");
    // This host can.
    let farm = farm.with_machines(&machine("localhost"));
    hydrad.hang_up();
    farm.wait_ended(&mut hydrad, &builds);
    assert_eq!(farm.statuses(&builds), [Some(0); 5], "{}", hydrad.log());
}

#[test]
fn a_binary_cache_tells_a_store_that_requires_signatures_where_their_outputs_are() {
    let store = local_store();
    let far = FarMachine::new(&store, "builder");
    far.store.content_addressed();
    let dir = TestDir::new(store.owner());
    dir.sub("cache", store.owner());
    store.signing_key(&dir);
    let cache = dir.join("cache");
    let conf = format!(
        "store_uri = file://{}?secret-key={}&compression=zstd\n",
        cache.display(),
        dir.join("secret").display()
    );
    let farm = Farm::new(&store)
        .with_conf(&conf)
        .with_machines(&machine("builder"));
    let mut scene = Scene::new(store, farm, &far.env());
    let builds = scene.build(&jobs("one"));
    assert_eq!(
        scene.picture(&builds),
        built_on("builder"),
        "{}",
        scene.hydrad.log()
    );
    assert!(
        !scene.store.is_valid(&scene.output(builds[1], "out")),
        "it did not stay here on its way"
    );
    // This host builds one with inputs from the cache, and another is found there.
    let farm = scene.farm.with_machines(&machine("localhost"));
    scene.farm = farm;
    scene.hydrad.hang_up();
    let again = scene.build(&jobs("two"));
    assert_eq!(
        scene.output(again[3], "out"),
        scene.output(builds[3], "out"),
        "{}",
        scene.hydrad.log()
    );
    assert!(scene
        .hydrad
        .log()
        .contains("resolves to what was built before"));

    // A store that has the derivation and nothing else asks the cache by the name of its output.
    let sql = "select drvPath from Builds where id = $1";
    let row = scene
        .farm
        .client()
        .query_one(sql, &[&builds[1]])
        .expect(sql);
    let drv: String = row.get(0);
    let closure = scene.store.store(&["-qR", &drv]);
    let exported = dir.join("drvs.nar");
    let mut export = scene.store.command("nix-store");
    export.arg("--export").args(closure.lines());
    export.stdout(fs::File::create(&exported).expect("make a file"));
    assert!(export.status().expect("start nix-store").success());
    let key = fs::read_to_string(dir.join("public")).expect("a key");
    let found = {
        let stranger = scene.store.second();
        stranger.content_addressed();
        let mut import = stranger.command("nix-store");
        import.args(["--import", "--option", "require-sigs", "false"]);
        output_of(import.stdin(fs::File::open(&exported).expect("open a file")));
        let mut realise = stranger.command("nix-store");
        realise
            .args(["-r", &drv, "--option", "max-jobs", "0"])
            .args(["--option", "substituters"])
            .arg(format!("file://{}", cache.display()))
            .args(["--option", "require-sigs", "true"])
            .args(["--option", "trusted-public-keys", key.trim()]);
        realise.output().expect("start nix-store")
    };
    let said = String::from_utf8_lossy(&found.stderr);
    assert!(found.status.success(), "{said}");
    let found = String::from_utf8_lossy(&found.stdout);
    let out = scene.output(builds[1], "out");
    assert!(found.lines().any(|path| path == out), "{found}");

    // Nix 2.8 believes whoever tells where an output is; later ones look at the signatures.
    let public = PublicKey::parse(key.trim()).expect("a public key");
    let mut told = 0;
    for file in fs::read_dir(cache.join("realisations")).expect("a folder") {
        let text = fs::read_to_string(file.expect("a file").path()).expect("text");
        let realisation = Realisation::parse(&text).expect("a realisation");
        let [signature] = realisation.signatures.as_slice() else {
            panic!("not one signature: {text}");
        };
        assert!(
            public.verify(&realisation.fingerprint(), signature),
            "{text}"
        );
        told += 1;
    }
    // Under the name of the step's derivation, and of what was built in its place if that does not tell its outputs.
    assert!(told >= 10, "{told}");
}

#[test]
fn tables_without_resolved_steps_get_one_row_for_each() {
    let store = local_store();
    let farm = Farm::new(&store).with_machines(&machine("localhost"));
    farm.client()
        .batch_execute(include_str!("../sql/schema/hydra-85-from-87.sql"))
        .expect("go back to schema 85");
    farm.client()
        .batch_execute("update SchemaVersion set version = 85")
        .expect("say so");
    let mut scene = Scene::new(store, farm, &[]);
    let builds = scene.build(&jobs("one"));
    let row = |job: &str, name: &str, outputs: &str| {
        format!("{job}: status 0 cached 0\n  1 {name} status 0 on localhost outputs {outputs}")
    };
    let expected = [
        row("a_base", "base", "out"),
        row("b_top", "top", "dev out"),
        row("c_deferred", "deferred", "out"),
        row("d_last", "last", "out"),
        row("e_all", "all", "out"),
    ];
    assert_eq!(
        scene.picture(&builds),
        expected.join("\n"),
        "{}",
        scene.hydrad.log()
    );
    nix_finds(&scene, &builds);
}

#[test]
fn what_cannot_be_built_ends_alone_and_says_why() {
    let store = NixStore::owned_by(RunAs::Unprivileged);
    let file = store.dir().file("jobs.nix", &jobs("one"), store.owner());
    let impure = r#"derivation { name = "impure"; system = builtins.currentSystem; builder = "/bin/sh"; __impure = true;
        outputHashMode = "recursive"; outputHashAlgo = "sha256"; args = [ "-c" "echo > $out" ]; }"#;
    let impure = store.dir().file("impure.nix", impure, store.owner());
    let features = [
        "--option",
        "experimental-features",
        "ca-derivations impure-derivations",
    ];
    let mut drvs = store.instantiate_file(&file, &features);
    drvs.extend(store.instantiate_file(&impure, &features));
    drvs.extend(store.instantiate(
        r#"derivation { name = "plain"; system = builtins.currentSystem; builder = "/bin/sh"; args = [ "-c" "echo > $out" ]; }"#,
    ));
    let farm = Farm::new(&store).with_machines(&machine("localhost"));
    let mut hydrad = farm.run(&[]);
    hydrad.wait_log("ready: ");
    let drvs: Vec<&str> = drvs.iter().map(String::as_str).collect();
    let builds = farm.enqueue(&drvs);
    farm.wait_ended(&mut hydrad, &builds);
    let statuses = [3, 3, 3, 3, 3, 3, 0].map(Some);
    assert_eq!(farm.statuses(&builds), statuses, "{}", hydrad.log());
    let mut client = farm.client();
    let mut message = |build: i32| -> String {
        let sql = "select errorMsg from BuildSteps where build = $1";
        client.query_one(sql, &[&build]).expect(sql).get(0)
    };
    let base = message(builds[0]);
    assert!(base.contains("base.drv is content-addressed"), "{base}");
    assert!(
        base.contains("ca-derivations of the local Nix is off"),
        "{base}"
    );
    let deferred = message(builds[2]);
    assert!(
        deferred.contains("depends on content-addressed"),
        "{deferred}"
    );
    let impure = message(builds[5]);
    assert!(impure.contains("impure.drv is impure"), "{impure}");
}

/// Jobs that are built more than once where that is wanted and can be done.
const REPEATED: &str = r#"
    let mk = name: attrs: script: derivation ({
          inherit name; system = builtins.currentSystem; builder = "/bin/bash";
          PATH = "/usr/bin:/bin"; args = [ "-ec" script ];
        } // attrs);
    in {
      a_same = mk "same" { } "echo once; echo same > $out";
      b_random = mk "random" { } "head -c 16 /dev/urandom | od > $out";
      c_declared = mk "declared" { isDetermistic = "1"; } "head -c 17 /dev/urandom | od > $out";
      d_true = mk "true" { isDetermistic = "1"; } "echo true > $out";
    }"#;

/// Of each build: job, status, what its step says, how often it was built and whether its outputs differed.
fn repetitions(scene: &Scene, builds: &[i32]) -> Vec<String> {
    let sql = "select b.job || ' ' || b.buildStatus || ' ' || s.status || ' times ' || coalesce(s.timesBuilt::text, '-')
                   || ' ' || coalesce(s.isNonDeterministic::text, '-')
                   || case when exists (select 1 from FailedPaths f join BuildOutputs o on o.path = f.path
                                        where o.build = b.id) then ' remembered' else '' end
               from Builds b join BuildSteps s on s.build = b.id where b.id = any($1) order by b.id, s.stepnr";
    let rows = scene.farm.client().query(sql, &[&builds]).expect(sql);
    rows.iter().map(|row| row.get(0)).collect()
}

/// What becomes of these jobs with two repetitions, on a machine of this name.
fn repeated(
    store: NixStore,
    conf: &str,
    machine: &str,
    env: &[(String, String)],
) -> (Scene, Vec<String>) {
    const CONF: &str = "xxx-jobset-repeats = manual:other:3 manual:manual:2\n";
    let line = format!("{machine} {} - 2 1 - -\n", common::system());
    let farm = Farm::new(&store)
        .with_conf(CONF)
        .with_conf(conf)
        .with_machines(&line);
    let mut scene = Scene::new(store, farm, env);
    let builds = scene.build(REPEATED);
    let found = repetitions(&scene, &builds);
    (scene, found)
}

#[test]
fn builds_are_repeated_where_the_machine_can() {
    let expected = [
        "a_same 0 0 times 3 false",
        // The first difference is enough; it fails what says of itself that there is none.
        "b_random 0 0 times 2 true",
        "c_declared 12 12 times 2 true remembered",
        "d_true 0 0 times 3 false",
    ];
    let store = NixStore::owned_by(RunAs::Unprivileged);
    let (scene, found) = repeated(store, "", "localhost", &[]);
    assert_eq!(found, expected, "{}", scene.hydrad.log());

    let store = NixStore::owned_by(RunAs::Unprivileged);
    let far = FarMachine::new(&store, "builder");
    let (scene, found) = repeated(store, "", "builder", &far.env());
    assert_eq!(found, expected, "{}", scene.hydrad.log());

    // A Nix that says it is newer is not asked to.
    let store = NixStore::owned_by(RunAs::Unprivileged);
    let newer = "#!/bin/sh\n[ \"$1\" = --version ] && exec echo 'nix-store (Nix) 2.13.0'\nexec nix-store \"$@\"\n";
    let newer = store.dir().file("newer", newer, store.owner());
    fs::set_permissions(&newer, fs::Permissions::from_mode(0o755)).unwrap();
    let conf = format!("nix_store_program = {}\n", newer.display());
    let (scene, found) = repeated(store, &conf, "localhost", &[]);
    let once = ["a_same", "b_random", "c_declared", "d_true"];
    let once = once.map(|job| format!("{job} 0 0 times 1 -"));
    assert_eq!(found, once, "{}", scene.hydrad.log());
    let told = "'localhost' has nix-store (Nix) 2.13.0, which cannot build a step again";
    assert!(scene.hydrad.log().contains(told), "{}", scene.hydrad.log());
}
