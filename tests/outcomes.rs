//! Every way in which a build can end: the exact rows, notifications and logs, as one table. The table is gone through
//! on a store that hydrad opens itself, through a nix-daemon as an ordinary user (as installed), and on a machine behind
//! ssh that has files of its own.

mod common;

use std::fmt::Write as _;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::process::Stdio;

use common::{output_of, Event, FarMachine, Farm, Hydrad, NixDaemon, NixStore, RunAs, TestDir};

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Way {
    Local,
    Daemon,
    Ssh,
}

struct Case {
    /// Also the beginning of the names of its derivations.
    name: &'static str,
    /// A derivation or a list of them. `mk NAME ATTRIBUTES SCRIPT` and the writable folder `dir` are at hand.
    nix: &'static str,
    /// Further arguments of `hydrad enqueue`.
    args: &'static [&'static str],
    how: How,
    log: Log,
    /// What is in the database afterwards and what was announced; see [`Scene::picture`].
    expected: &'static str,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum How {
    Plain,
    /// The outputs are in hydrad's store already.
    ValidHere,
    /// The outputs are in the machine's store already, and only there.
    ValidThere,
    /// It failed at another time, says FailedPaths; or its input did, if it has one.
    FailedBefore,
    /// The derivation was collected before hydrad looks at it.
    Collected,
    /// The derivation's file is not one.
    Damaged,
    /// Cancelled by the web interface while the builder runs.
    Cancelled,
}

/// What `hydrad log` prints of the first build.
enum Log {
    Nothing,
    Exactly(&'static str),
    Begins(&'static str),
    Long(fn() -> String),
    /// That of each attempt.
    Attempts(&'static [&'static str]),
}

const CASES: &[Case] = &[
    Case {
        name: "products",
        nix: r#"mk "products" { } ''
            echo making products
            mkdir -p $out/nix-support
            echo manual > $out/manual.txt
            : > $out/empty
            echo "doc manual $out/manual.txt" > $out/nix-support/hydra-build-products
            echo "file binary-dist $out/empty index.html" >> $out/nix-support/hydra-build-products
            echo "doc gone $out/not-there" >> $out/nix-support/hydra-build-products
            echo "thing-1.0" > $out/nix-support/hydra-release-name
            echo "lines 12 loc" > $out/nix-support/hydra-metrics
            echo "ratio 1.5" >> $out/nix-support/hydra-metrics
        ''"#,
        args: &[],
        how: How::Plain,
        log: Log::Exactly("making products\n"),
        expected: "
            a: status 0, cached 0, size ok, closure ok, release thing-1.0, pending
              out products
              product 1: doc manual, 7 bytes, sha256 cd60ed2fa8c947cb05cb57b23884dea9390e4b6aec0add666e69bf842fc68da0, manual.txt, products/manual.txt, default ''
              product 2: file binary-dist, 0 bytes, sha256 e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855, empty, products/empty, default 'index.html'
              metric lines = 12 loc
              metric ratio = 1.5 -
              step 1: products, status 0, on MACHINE
                out products
            build_started a
            step_started a 1
            step_finished a 1 products
            build_finished a",
    },
    Case {
        name: "inputs",
        nix: r#"mk "inputs" { outputs = [ "out" "doc" ]; dep = mk "inputs-dep" { } "echo dep > $out"; } ''
            mkdir $doc
            cat $dep > $out
            ln -s $dep $doc/dep
        ''"#,
        args: &[],
        how: How::Plain,
        log: Log::Exactly(""),
        expected: "
            a: status 0, cached 0, size ok, closure ok, release -, pending
              doc inputs-doc
              out inputs
              product 1: nix-build doc, - bytes, sha256 -, inputs-doc, inputs-doc, default ''
              step 1: inputs-dep, status 0, on MACHINE
                out inputs-dep
              step 2: inputs, status 0, on MACHINE
                doc inputs-doc
                out inputs
            step_started a 1
            step_finished a 1 inputs-dep
            build_started a
            step_started a 2
            step_finished a 2 inputs
            build_finished a",
    },
    Case {
        name: "valid-here",
        nix: r#"mk "valid-here" { } "mkdir $out""#,
        args: &[],
        how: How::ValidHere,
        log: Log::Nothing,
        expected: "
            a: status 0, cached 1, size ok, closure ok, release -, pending
              out valid-here
              product 1: nix-build , - bytes, sha256 -, valid-here, valid-here, default ''
            build_finished a",
    },
    Case {
        name: "valid-there",
        nix: r#"mk "valid-there" { } "echo > $out""#,
        args: &[],
        how: How::ValidThere,
        log: Log::Nothing,
        expected: "
            a: status 0, cached 1, size ok, closure ok, release -, pending
              out valid-there
              step 1: valid-there, status 0, on MACHINE
                out valid-there
            build_started a
            step_started a 1
            step_finished a 1 -
            build_finished a",
    },
    Case {
        name: "fails",
        nix: r#"mk "fails" { } "echo no; exit 3""#,
        args: &[],
        how: How::Plain,
        log: Log::Exactly("no\n"),
        expected: "
            a: status 1, cached 0, pending
              out fails
              step 1: fails, status 1, on MACHINE
                out fails (failed path)
            build_started a
            step_started a 1
            step_finished a 1 fails
            build_finished a",
    },
    Case {
        name: "dependency-fails",
        nix: r#"let bad = mk "dependency-fails-bad" { } "echo bad; exit 1"; in map (name: mk name { inherit bad; } "")
            [ "dependency-fails-1" "dependency-fails-2" ]"#,
        args: &[],
        how: How::Plain,
        log: Log::Exactly("bad\n"),
        expected: "
            a: status 2, cached 0, pending
              out dependency-fails-1
              step 1: dependency-fails-bad, status 1, on MACHINE
                out dependency-fails-bad (failed path)
            b: status 2, cached 0, pending
              out dependency-fails-2
              step 1: dependency-fails-bad, status 1, on MACHINE, propagated from a, without times
                out dependency-fails-bad (failed path)
            step_started a 1
            step_finished a 1 dependency-fails-bad
            build_finished a b",
    },
    Case {
        name: "failed-output",
        nix: r#"mk "failed-output" { } "mkdir -p $out/nix-support; echo > $out/nix-support/failed""#,
        args: &[],
        how: How::Plain,
        log: Log::Exactly(""),
        expected: "
            a: status 6, cached 0, size ok, closure ok, release -, pending
              out failed-output
              product 1: nix-build , - bytes, sha256 -, failed-output, failed-output, default ''
              step 1: failed-output, status 0, on MACHINE
                out failed-output
            build_started a
            step_started a 1
            step_finished a 1 failed-output
            build_finished a",
    },
    Case {
        name: "too-long",
        nix: r#"mk "too-long" { } "while sleep 0.1; do echo tick; done""#,
        args: &["--timeout", "1"],
        how: How::Plain,
        log: Log::Begins("tick\n"),
        expected: "
            a: status 7, cached 0, pending
              out too-long
              step 1: too-long, status 7, on MACHINE
                out too-long
            build_started a
            step_started a 1
            step_finished a 1 too-long
            build_finished a",
    },
    Case {
        name: "too-silent",
        nix: r#"mk "too-silent" { } "echo once; sleep 1000""#,
        args: &["--max-silent", "1"],
        how: How::Plain,
        log: Log::Begins("once\n"),
        expected: "
            a: status 7, cached 0, pending
              out too-silent
              step 1: too-silent, status 7, on MACHINE
                out too-silent
            build_started a
            step_started a 1
            step_finished a 1 too-silent
            build_finished a",
    },
    Case {
        name: "too-much-log",
        nix: r#"mk "too-much-log" { } "yes this is the same line as all the other ones""#,
        args: &[],
        how: How::Plain,
        log: Log::Begins("this is the same line as all the other ones\n"),
        expected: "
            a: status 10, cached 0, pending
              out too-much-log
              step 1: too-much-log, status 10, on MACHINE
                out too-much-log
            build_started a
            step_started a 1
            step_finished a 1 too-much-log
            build_finished a",
    },
    Case {
        name: "too-large",
        nix: r#"mk "too-large" { } "head -c 2000000 /dev/zero > $out""#,
        args: &[],
        how: How::Plain,
        log: Log::Exactly(""),
        expected: "
            a: status 11, cached 0, pending
              out too-large
              step 1: too-large, status 11, on MACHINE
                out too-large
            build_started a
            step_started a 1
            step_finished a 1 too-large
            build_finished a",
    },
    Case {
        name: "retried",
        // Nix calls the failure of a fixed-output derivation transient.
        nix: r#"mk "retried" { outputHash = builtins.hashString "sha256" "fixed\n"; outputHashAlgo = "sha256"; } ''
            if mkdir ${dir}/tried; then echo the first attempt; exit 1; fi 2>/dev/null
            echo the second attempt
            echo fixed > $out
        ''"#,
        args: &[],
        how: How::Plain,
        log: Log::Attempts(&["the first attempt\n", "the second attempt\n"]),
        expected: "
            a: status 0, cached 0, size ok, closure ok, release -, pending
              out retried
              step 1: retried, status 1, on MACHINE
                out retried
              step 2: retried, status 0, on MACHINE
                out retried
            build_started a
            step_started a 1
            step_finished a 1 retried.attempt-1
            build_started a
            step_started a 2
            step_finished a 2 retried
            build_finished a",
    },
    Case {
        name: "failed-before",
        nix: r#"mk "failed-before" { } """#,
        args: &[],
        how: How::FailedBefore,
        log: Log::Nothing,
        expected: "
            a: status 1, cached 1, pending
              out failed-before
              step 1: failed-before, status 8, on nothing, without times
            build_finished a",
    },
    Case {
        name: "input-failed-before",
        nix: r#"mk "input-failed-before" { bad = mk "input-failed-before-bad" { } ""; } """#,
        args: &[],
        how: How::FailedBefore,
        log: Log::Nothing,
        expected: "
            a: status 2, cached 1, pending
              out input-failed-before
              step 1: input-failed-before-bad, status 8, on nothing, without times
            build_finished a",
    },
    Case {
        name: "unsupported",
        nix: r#"mk "unsupported" { system = "m68k-none"; } """#,
        args: &[],
        how: How::Plain,
        log: Log::Nothing,
        expected: "
            a: status 9, cached 0, pending
              out unsupported
              step 1: unsupported, status 9, on nothing
                message: unsupported system type 'm68k-none'
            build_finished a",
    },
    Case {
        name: "collected",
        nix: r#"mk "collected" { } "echo > $out""#,
        args: &[],
        how: How::Collected,
        log: Log::Nothing,
        expected: "
            a: status 3, cached 0, pending
              step 1: collected, status 3, on nothing
                message: derivation ‘collected.drv’ is not in the store any more: it was garbage-collected before it could be built
            build_finished a",
    },
    Case {
        name: "damaged",
        nix: r#"mk "damaged" { } "echo > $out""#,
        args: &[],
        how: How::Damaged,
        log: Log::Nothing,
        expected: "
            a: status 3, cached 0, pending
              step 1: damaged, status 3, on nothing
                message: damaged.drv is damaged: malformed derivation at byte 15: a string without an end
            build_finished a",
    },
    Case {
        name: "cancelled",
        nix: r#"mk "cancelled" { } "echo begun; echo $$ > ${dir}/builder; exec sleep 1000""#,
        args: &[],
        how: How::Cancelled,
        log: Log::Begins("begun\n"),
        expected: "
            a: status 4, cached 0
              out cancelled
              step 1: cancelled, status 4, on MACHINE
                out cancelled
            build_started a
            step_started a 1
            step_finished a 1 cancelled",
    },
    Case {
        name: "talkative",
        nix: r#"mk "talkative" { } "seq 1 400000; printf 'the end, without a newline'; echo > $out""#,
        args: &[],
        how: How::Plain,
        log: Log::Long(|| {
            let lines: String = (1..=400_000).map(|n| format!("{n}\n")).collect();
            // Nix itself ends the last line.
            lines + "the end, without a newline\n"
        }),
        expected: "
            a: status 0, cached 0, size ok, closure ok, release -, pending
              out talkative
              step 1: talkative, status 0, on MACHINE
                out talkative
            build_started a
            step_started a 1
            step_finished a 1 talkative
            build_finished a",
    },
];

/// A farm with one machine, reached in one of the ways.
struct Scene {
    store: NixStore,
    farm: Farm,
    scratch: TestDir,
    machine: &'static str,
    far: Option<FarMachine>,
    /// Has to live as long as the farm.
    _daemon: Option<NixDaemon>,
    /// What has to be in hydrad's environment.
    env: Vec<(String, String)>,
    began: i64,
}

impl Scene {
    fn new(way: Way) -> Scene {
        let scratch = TestDir::new(RunAs::Me);
        fs::set_permissions(scratch.path(), fs::Permissions::from_mode(0o777)).unwrap();
        let mut scene = match way {
            Way::Local => {
                let store = NixStore::new();
                let farm = Farm::new(&store);
                Scene::of(store, farm, scratch)
            }
            Way::Daemon => {
                let store = NixStore::new();
                let daemon = NixDaemon::start(&store, &[&RunAs::Unprivileged.name()]);
                let farm = Farm::with_env(RunAs::Unprivileged, daemon.env());
                let mut scene = Scene::of(store, farm, scratch);
                scene._daemon = Some(daemon);
                scene
            }
            Way::Ssh => Scene::behind_ssh(scratch),
        };
        scene.farm = scene
            .farm
            .with_machines(&format!(
                "{} {}-linux - 4 1 - -\n",
                scene.machine,
                std::env::consts::ARCH
            ))
            .with_conf("retry_interval = 1\nmax_log_size = 4M\nmax_output_size = 1M\n");
        scene
    }

    fn of(store: NixStore, farm: Farm, scratch: TestDir) -> Scene {
        Scene {
            store,
            farm,
            scratch,
            machine: "localhost",
            far: None,
            _daemon: None,
            env: Vec::new(),
            began: now(),
        }
    }

    fn behind_ssh(scratch: TestDir) -> Scene {
        let store = NixStore::owned_by(RunAs::Unprivileged);
        let far = FarMachine::new(&store, "builder");
        let farm = Farm::new(&store);
        let mut scene = Scene::of(store, farm, scratch);
        scene.machine = "builder";
        scene.env = far.env();
        scene.far = Some(far);
        scene
    }

    /// The derivations of a case, and the state of the world in which it begins.
    fn prepare(&self, case: &Case) -> Vec<String> {
        let drvs = self.store.instantiate(&format!(
            "let dir = \"{}\"; mk = name: attrs: script: derivation ({{ inherit name; system = builtins.currentSystem;
               builder = \"/bin/sh\"; args = [ \"-c\" script ]; PATH = \"/usr/bin:/bin\"; }} // attrs); in {}",
            self.scratch.path().display(),
            case.nix
        ));
        match (case.how, &self.far) {
            (How::Plain | How::Cancelled, _) => {}
            (How::FailedBefore, _) => {
                let sql = "insert into FailedPaths (path) select unnest($1::text[])";
                let requisites = self.store.store(&["-qR", &drvs[0]]);
                let input = requisites.lines().find(|path| *path != drvs[0]);
                let outputs = self.store.outputs(input.unwrap_or(&drvs[0]));
                self.farm.client().execute(sql, &[&outputs]).unwrap();
            }
            (How::ValidHere, _) => drop(self.store.build(&drvs[0])),
            (How::ValidThere, None) => unreachable!("only a machine with files of its own"),
            (How::ValidThere, Some(far)) => {
                let mut export = self.store.command("nix-store");
                export.args(["--export", &drvs[0]]).stdout(Stdio::piped());
                let mut export = export.spawn().unwrap();
                let mut import = far.store.command("nix-store");
                output_of(import.arg("--import").stdin(export.stdout.take().unwrap()));
                assert!(export.wait().unwrap().success());
                far.store.store(&["-r", &drvs[0]]);
            }
            (How::Collected, _) => drop(self.store.store(&["--delete", &drvs[0]])),
            (How::Damaged, _) => {
                fs::set_permissions(&drvs[0], fs::Permissions::from_mode(0o644)).unwrap();
                fs::write(&drvs[0], "Derive([(\"out\",\"/tmp").unwrap();
            }
        }
        drvs
    }

    fn queue(&self, case: &Case, drvs: &[String]) -> Vec<i32> {
        let drv = &drvs[0];
        match case.how {
            // hydrad enqueue does not take what cannot be read.
            How::Collected | How::Damaged => {
                let sql =
                    "insert into Builds (finished, timestamp, jobset_id, job, drvPath, system)
                           select 0, 1, id, 'odd', $1, 'x86_64-linux' from Jobsets returning id";
                let mut client = self.farm.client();
                let build: i32 = client.query_one(sql, &[drv]).unwrap().get(0);
                let sql = "select pg_notify('builds_added', $1)";
                client.execute(sql, &[&build.to_string()]).unwrap();
                vec![build]
            }
            _ => {
                let mut args = case.args.to_vec();
                args.extend(drvs.iter().map(String::as_str));
                self.farm.enqueue(&args)
            }
        }
    }

    /// Cancels a build as the web interface does, when its builder runs; waits until that is gone.
    fn cancel(&self, hydrad: &mut Hydrad, build: i32) {
        let file = self.scratch.join("builder");
        let pid: i32 = hydrad.eventually("the builder should run", || {
            fs::read_to_string(&file).ok()?.trim().parse().ok()
        });
        hydrad.wait_sql(
            &self.farm.db,
            &format!("select count(*) = 1 from BuildSteps where build = {build} and busy = 30"),
        );
        // SAFETY: signal 0 only asks whether the process is there.
        let runs = || unsafe { libc::kill(pid, 0) == 0 };
        assert!(runs());
        let sql = "update Builds set finished = 1, buildStatus = 4, isCachedBuild = 0, startTime = $2, stopTime = $2
                   where id = $1";
        let mut client = self.farm.client();
        client.execute(sql, &[&build, &(now() as i32)]).unwrap();
        client.batch_execute("notify builds_cancelled").unwrap();
        hydrad.eventually("the builder should be gone", || (!runs()).then_some(()));
    }

    /// What the database says of a case's builds, and what was announced of them, as text. Builds are called a, b, c;
    /// store paths lose their directory and hash, logs are called by their derivation.
    fn picture(&self, builds: &[i32], events: &[Event]) -> String {
        let mut text = String::new();
        for &build in builds {
            self.picture_build(&mut text, builds, build);
        }
        let ids: Vec<String> = builds.iter().map(i32::to_string).collect();
        for event in events {
            let mut fields: Vec<&str> = event.payload.split('\t').collect();
            if !ids.iter().any(|id| id == fields[0]) {
                continue;
            }
            let log;
            if event.channel == "step_finished" {
                assert_eq!(fields.len(), 3, "{event:?}");
                log = self.log_name(fields[2]);
                fields[2] = &log;
            }
            let count = if event.channel == "build_finished" {
                fields.len()
            } else {
                1
            };
            let names: Vec<String> = fields
                .iter()
                .enumerate()
                .map(|(n, field)| {
                    if n < count {
                        name_of(builds, field.parse().unwrap())
                    } else {
                        field.to_string()
                    }
                })
                .collect();
            writeln!(text, "{} {}", event.channel, names.join(" ")).unwrap();
        }
        text
    }

    fn picture_build(&self, text: &mut String, builds: &[i32], build: i32) {
        let mut client = self.farm.client();
        let sql = "select finished, buildStatus, isCachedBuild, startTime, stopTime, size, closureSize, releaseName,
                          notificationPendingSince from Builds where id = $1";
        let row = client.query_one(sql, &[&build]).unwrap();
        assert_eq!(row.get::<_, i32>(0), 1, "build {build} is finished");
        let (start, stop): (i32, i32) = (row.get(3), row.get(4));
        self.check_times(start, stop);
        let status: i32 = row.get(1);
        write!(
            text,
            "{}: status {status}, cached {}",
            name_of(builds, build),
            row.get::<_, i32>(2)
        )
        .unwrap();
        let sql = "select name, path from BuildOutputs where build = $1 order by name";
        let outputs: Vec<(String, String)> = client
            .query(sql, &[&build])
            .unwrap()
            .iter()
            .map(|row| (row.get(0), row.get(1)))
            .collect();
        if status == 0 || status == 6 {
            let paths: Vec<&str> = outputs.iter().map(|(_, path)| path.as_str()).collect();
            let (size, closure) = (self.size_of(&paths, false), self.size_of(&paths, true));
            let compare = |found: i64, nix: i64| {
                if found == nix {
                    "ok".into()
                } else {
                    format!("{found} (Nix says {nix})")
                }
            };
            let release: Option<String> = row.get(7);
            write!(
                text,
                ", size {}, closure {}, release {}",
                compare(row.get(5), size),
                compare(row.get(6), closure),
                release.as_deref().unwrap_or("-")
            )
            .unwrap();
        } else {
            assert_eq!(row.get::<_, Option<i64>>(5), None);
            assert_eq!(row.get::<_, Option<i64>>(6), None);
        }
        let pending: Option<i32> = row.get(8);
        text.push_str(match pending {
            Some(since) if since == stop => ", pending\n",
            Some(_) => ", pending since another time\n",
            None => "\n",
        });
        for (name, path) in &outputs {
            writeln!(text, "  {name} {}", self.short(path)).unwrap();
        }
        let sql = "select productnr, type, subtype, fileSize, sha256hash, name, path, defaultPath from BuildProducts
                   where build = $1 order by productnr";
        for row in client.query(sql, &[&build]).unwrap() {
            writeln!(
                text,
                "  product {}: {} {}, {} bytes, sha256 {}, {}, {}, default '{}'",
                row.get::<_, i32>(0),
                row.get::<_, &str>(1),
                row.get::<_, &str>(2),
                row.get::<_, Option<i64>>(3)
                    .map_or("-".into(), |size| size.to_string()),
                row.get::<_, Option<&str>>(4).unwrap_or("-"),
                row.get::<_, &str>(5),
                self.short(row.get(6)),
                row.get::<_, &str>(7),
            )
            .unwrap();
        }
        let sql = "select m.name, m.value, m.unit, (m.project, m.jobset, m.job, m.timestamp) = (j.project, j.name, b.job, b.timestamp)
                   from BuildMetrics m join Builds b on b.id = m.build join Jobsets j on j.id = b.jobset_id
                   where b.id = $1 order by m.name";
        for row in client.query(sql, &[&build]).unwrap() {
            let (name, value): (&str, f64) = (row.get(0), row.get(1));
            let unit: Option<&str> = row.get(2);
            writeln!(text, "  metric {name} = {value} {}", unit.unwrap_or("-")).unwrap();
            assert!(row.get::<_, bool>(3), "a metric tells whose it is");
        }
        self.picture_steps(text, builds, build);
    }

    fn picture_steps(&self, text: &mut String, builds: &[i32], build: i32) {
        let mut client = self.farm.client();
        let sql = "select stepnr, drvPath, status, machine, propagatedFrom, errorMsg, startTime, stopTime, busy, type, system
                   from BuildSteps where build = $1 order by stepnr";
        for row in client.query(sql, &[&build]).unwrap() {
            let stepnr: i32 = row.get(0);
            let drv: &str = row.get(1);
            let machine: &str = row.get(3);
            let propagated: Option<i32> = row.get(4);
            assert_eq!(
                (row.get::<_, i32>(8), row.get::<_, i32>(9)),
                (0, 0),
                "not busy, a build"
            );
            write!(
                text,
                "  step {stepnr}: {}, status {}, on {}",
                self.short(drv).trim_end_matches(".drv"),
                row.get::<_, i32>(2),
                if machine.is_empty() {
                    "nothing"
                } else {
                    machine
                }
            )
            .unwrap();
            if let Some(from) = propagated {
                write!(text, ", propagated from {}", name_of(builds, from)).unwrap();
            }
            match (row.get(6), row.get(7)) {
                (Some(start), Some(stop)) => self.check_times(start, stop),
                (None, None) => text.push_str(", without times"),
                odd => panic!("times of step {stepnr} of build {build}: {odd:?}"),
            }
            text.push('\n');
            if let Some(message) = row.get::<_, Option<&str>>(5) {
                let base = drv.rsplit('/').next().unwrap();
                let message = message
                    .replace(drv, self.short(drv))
                    .replace(base, self.short(drv));
                writeln!(text, "    message: {message}").unwrap();
            }
            if !machine.is_empty() {
                let system = format!("{}-linux", std::env::consts::ARCH);
                assert_eq!(row.get::<_, Option<&str>>(10), Some(system.as_str()));
            }
            let sql =
                "select o.name, o.path, exists (select 1 from FailedPaths f where f.path = o.path)
                       from BuildStepOutputs o where build = $1 and stepnr = $2 order by name";
            for row in client.query(sql, &[&build, &stepnr]).unwrap() {
                let failed = if row.get(2) { " (failed path)" } else { "" };
                writeln!(
                    text,
                    "    {} {}{failed}",
                    row.get::<_, &str>(0),
                    self.short(row.get(1))
                )
                .unwrap();
            }
        }
    }

    fn check_times(&self, start: i32, stop: i32) {
        let times = [self.began, start.into(), stop.into(), now()];
        assert!(times.is_sorted(), "{times:?}");
    }

    /// NAR sizes as Nix knows them.
    fn size_of(&self, paths: &[&str], closure: bool) -> i64 {
        let requisites;
        let mut args = vec!["-q", "--size"];
        if closure {
            requisites = self.store.store(&[&["-qR"], paths].concat());
            args.extend(requisites.lines());
        } else {
            args.extend(paths);
        }
        self.store
            .store(&args)
            .lines()
            .map(|size| size.parse::<i64>().unwrap())
            .sum()
    }

    fn short<'a>(&self, path: &'a str) -> &'a str {
        let dir = self.store.store_dir();
        match path.strip_prefix(dir.to_str().unwrap()) {
            Some(rest) if rest.len() > 34 => &rest[34..],
            _ => path,
        }
    }

    /// A log by its derivation, if it is where Hydra looks for it.
    fn log_name(&self, path: &str) -> String {
        let logs = self.farm.dir().join("build-logs");
        match path.strip_prefix(&format!("{}/", logs.display())) {
            Some(rest) if rest.len() > 34 && &rest[2..3] == "/" => {
                rest[34..].replacen(".drv", "", 1)
            }
            _ => path.into(),
        }
    }

    fn log(&self, args: &[&str]) -> Result<String, String> {
        let mut command = self.farm.command(&["log"]);
        let output = command.args(args).output().unwrap();
        let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
        if output.status.success() {
            Ok(text(output.stdout))
        } else {
            Err(text(output.stderr))
        }
    }

    /// Says what is wrong with a log.
    fn check_log(&self, case: &Case, build: i32) -> Option<String> {
        let build = build.to_string();
        let exactly = |expected: &str, found: Result<String, String>| match found {
            Ok(found) if found == expected => None,
            Ok(found) if found.len() + expected.len() > 10_000 => {
                let same = found
                    .bytes()
                    .zip(expected.bytes())
                    .take_while(|(a, b)| a == b)
                    .count();
                Some(format!(
                    "{} bytes instead of {}, equal to byte {same}",
                    found.len(),
                    expected.len()
                ))
            }
            found => Some(format!("expected {expected:?}, found {found:?}")),
        };
        let found = || self.log(&[&build]);
        match &case.log {
            Log::Nothing => match found() {
                Err(message) if message.contains("there is no log of") => None,
                other => Some(format!("{other:?}")),
            },
            Log::Exactly(text) => exactly(text, found()),
            Log::Long(text) => exactly(&text(), found()),
            Log::Begins(text) => match found() {
                Ok(found) if found.starts_with(text) => None,
                other => Some(format!("{:.1000}", format!("{other:?}"))),
            },
            Log::Attempts(texts) => {
                let each = (1..).zip(texts.iter()).find_map(|(n, text)| {
                    exactly(text, self.log(&[&build, "--attempt", &n.to_string()]))
                });
                let list = self.log(&[&build, "--attempts"]).unwrap();
                let wrong =
                    (list.lines().count() != texts.len()).then(|| format!("attempts: {list}"));
                each.or(wrong)
                    .or_else(|| exactly(texts[texts.len() - 1], found()))
            }
        }
    }
}

fn name_of(builds: &[i32], build: i32) -> String {
    match builds.iter().position(|id| *id == build) {
        Some(n) => char::from(b'a' + n as u8).to_string(),
        None => format!("another build ({build})"),
    }
}

fn now() -> i64 {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    now.unwrap().as_secs() as i64
}

/// Without indentation and empty lines.
fn plain(text: &str, machine: &str) -> String {
    let text = text.replace("MACHINE", machine);
    let lines = text.lines().filter(|line| !line.trim().is_empty());
    let indent = lines
        .clone()
        .map(|line| line.len() - line.trim_start().len())
        .min()
        .unwrap_or(0);
    lines.map(|line| format!("{}\n", &line[indent..])).collect()
}

fn check_all(way: Way) {
    let scene = Scene::new(way);
    let cases = CASES
        .iter()
        .filter(|case| case.how != How::ValidThere || scene.far.is_some());
    let mut prepared: Vec<(&Case, Vec<String>)> =
        cases.map(|case| (case, scene.prepare(case))).collect();
    // The odd ones come into the queue by hand, into the jobset that `hydrad enqueue` makes.
    prepared.sort_by_key(|(case, _)| matches!(case.how, How::Collected | How::Damaged));
    let heard = scene.farm.db.listen(&[
        "build_started",
        "step_started",
        "step_finished",
        "build_finished",
    ]);
    let mut hydrad = scene.farm.run(&scene.env);
    let queued: Vec<(&Case, Vec<i32>)> = prepared
        .iter()
        .map(|(case, drvs)| (*case, scene.queue(case, drvs)))
        .collect();
    for (case, builds) in &queued {
        if case.how == How::Cancelled {
            scene.cancel(&mut hydrad, builds[0]);
        }
    }
    let all: Vec<i32> = queued
        .iter()
        .flat_map(|(_, builds)| builds.clone())
        .collect();
    scene.farm.wait_ended(&mut hydrad, &all);
    hydrad.wait_sql(
        &scene.farm.db,
        "select count(*) = 0 from BuildSteps where busy <> 0",
    );
    // Notifications arrive in the order of the commits: nothing of hydrad's is still on its way behind this one.
    scene
        .farm
        .client()
        .batch_execute("notify build_finished, 'no build'")
        .unwrap();
    heard.wait_for("build_finished", "no build");

    let events = heard.events();
    let mut wrong = String::new();
    for (case, builds) in &queued {
        let found = scene.picture(builds, &events);
        let expected = plain(case.expected, scene.machine);
        if found != expected {
            write!(
                wrong,
                "\n== {} {way:?}\n-- expected\n{expected}-- found\n{found}",
                case.name
            )
            .unwrap();
        }
        if let Some(message) = scene.check_log(case, builds[0]) {
            write!(wrong, "\n== the log of {} {way:?}: {message}\n", case.name).unwrap();
        }
    }
    assert!(wrong.is_empty(), "{wrong}");
    assert!(
        !hydrad.log().contains("will disable machine"),
        "no build's end is the machine's fault"
    );
    assert!(hydrad.terminate().success());
}

#[test]
fn every_outcome_in_a_store_of_its_own() {
    check_all(Way::Local);
}

#[test]
fn every_outcome_through_a_nix_daemon_as_an_ordinary_user() {
    check_all(Way::Daemon);
}

#[test]
fn every_outcome_on_a_machine_behind_ssh() {
    check_all(Way::Ssh);
}
