//! Evaluating jobs: `hydrad eval-jobs` with the installed Nix, in private stores.

mod common;

use std::collections::BTreeMap;
use std::path::Path;
use std::process::{Command, Output};

use common::{NixStore, RunAs, TestDir};
use serde_json::Value;

/// A store, a folder with expressions that is `src` on the search path, and a hydra.conf.
struct Bench {
    store: NixStore,
    src: TestDir,
    conf: String,
}

/// What came out.
struct Found {
    jobs: BTreeMap<String, Value>,
    said: String,
}

impl Bench {
    fn new(expression: &str) -> Bench {
        let bench = Bench {
            store: NixStore::new(),
            src: TestDir::new(RunAs::Me),
            conf: String::new(),
        };
        bench.write("jobs.nix", expression);
        bench
    }

    fn write(&self, name: &str, text: &str) {
        std::fs::write(self.src.join(name), text).expect("write an expression");
    }

    fn conf(mut self, lines: &str) -> Bench {
        self.conf = lines.to_owned();
        self
    }

    fn roots(&self) -> std::path::PathBuf {
        self.store.dir().join("var/gcroots/hydra-roots")
    }

    fn command(&self, args: &[&str]) -> Command {
        let conf = self.src.join("hydra.conf");
        std::fs::write(&conf, &self.conf).expect("write hydra.conf");
        let mut command = self.store.command(env!("CARGO_BIN_EXE_hydrad"));
        command
            .args(["-v", "eval-jobs"])
            .args(args)
            .env("HYDRA_CONFIG", conf)
            .env("HYDRA_DATA", self.src.path());
        command
    }

    fn output(&self, args: &[&str]) -> Output {
        self.command(args).output().expect("start hydrad")
    }

    fn eval(&self, args: &[&str]) -> Found {
        let src = format!("src={}", self.src.path().display());
        let roots = self.roots().display().to_string();
        let mut all = vec!["-I", &src, "--gc-roots-dir", &roots, "<src/jobs.nix>"];
        all.extend(args);
        found(self.output(&all))
    }
}

fn found(output: Output) -> Found {
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{:?}: {said}", output.status);
    let jobs = serde_json::from_slice(&output.stdout).expect("JSON");
    Found { jobs, said }
}

impl Found {
    fn error(&self, job: &str) -> &str {
        self.jobs[job]["error"]
            .as_str()
            .unwrap_or_else(|| panic!("{job} has no error: {}", self.jobs[job]))
    }

    fn names(&self) -> Vec<&str> {
        self.jobs.keys().map(String::as_str).collect()
    }

    /// The number before these words in the summary.
    fn number(&self, after: &str, words: &str) -> u64 {
        let line = self.said.lines().find(|line| line.contains(" jobs in "));
        let line = line.unwrap_or_else(|| panic!("no summary: {}", self.said));
        let rest = line.split(after).nth(1).expect(after);
        let text = rest.split(words).next().expect(words).trim();
        text.parse().unwrap_or_else(|_| panic!("{text}: {line}"))
    }
}

/// Errors of the ten ways of `failing.nix`, as their beginning.
fn expected_error(job: &str, number: u32) -> String {
    match number / 16 % 10 {
        0 => format!("error: thrown {number}"),
        1 => format!(
            "error: evaluation aborted with the following error message: 'aborted {number}'"
        ),
        2 => "error: attribute 'nope' missing".to_owned(),
        3 => "error: cannot add a string to an integer".to_owned(),
        4 => "error: infinite recursion encountered".to_owned(),
        5 => "error: stack overflow".to_owned(),
        6 => "error: evaluating this job takes more memory than evaluator_max_memory_size allows"
            .to_owned(),
        7 => format!("bad name ! {number}' contains illegal character ' '"),
        8 => format!("error: attribute '{job}' is an integer, which is not supported"),
        _ => format!("error: broken constituent of {number}"),
    }
}

/// By default a small jobset; `HYDRAD_EVAL_JOBS=10000` is the one of the benchmark.
#[test]
fn every_failing_job_has_its_own_error_and_all_others_are_evaluated() {
    let jobs: u32 = match std::env::var("HYDRAD_EVAL_JOBS") {
        Ok(jobs) => jobs.parse().expect("a number"),
        Err(_) => 800,
    };
    let bench = Bench::new(include_str!("eval/failing.nix"))
        .conf("evaluator_workers = 2\nevaluator_max_memory_size = 256\n");
    let found = bench.eval(&["--arg", "n", &jobs.to_string()]);
    assert_eq!(found.jobs.len() as u32, jobs);
    let mut failed = 0;
    for number in 0..jobs {
        let name = format!("s{}.j{number}", number / 100);
        let job = &found.jobs[&name];
        if number % 16 == 7 {
            let expected = expected_error(&name, number);
            let error = found.error(&name);
            assert!(error.contains(&expected), "{name}: {error}");
            failed += 1;
        } else {
            assert_eq!(job["nixName"], format!("j{number}"), "{name}: {job}");
            assert_eq!(job["error"], Value::Null, "{name}");
        }
    }
    // As nix-instantiate finds them.
    let file = bench.src.join("jobs.nix");
    let args = [
        "-A",
        "s0.j0",
        "-A",
        "s1.j100",
        "--arg",
        "n",
        &jobs.to_string(),
    ];
    let drvs = bench.store.instantiate_file(&file, &args);
    assert_eq!(found.jobs["s0.j0"]["drvPath"], drvs[0]);
    assert_eq!(found.jobs["s1.j100"]["drvPath"], drvs[1]);
    // Nothing was collected meanwhile, and nothing will be.
    bench.store.store(&["--gc"]);
    let kept = found
        .jobs
        .values()
        .filter_map(|job| job["drvPath"].as_str());
    assert_eq!(
        kept.filter(|drv| Path::new(drv).exists()).count() as u32,
        jobs - failed
    );
    // A process may grow for as long as nobody looks: 20 ms and what the scheduler adds.
    let largest = found.number("the largest had ", " MiB");
    println!(
        "{failed} of {jobs} failed; {}",
        found.said.lines().last().unwrap_or_default()
    );
    assert!(largest < 256 + 128, "the largest process had {largest} MiB");
}

const SHAPES: &str = r#"
{ system ? "none", greeting, number ? 0, ... }@all:
let
  job = name: extra: derivation { inherit name; system = "x86_64-linux"; builder = "/bin/sh"; args = [ ]; } // extra;
in {
  plain = job "plain-1.0" { };
  arguments = job "arguments" { meta.description = "${system} ${greeting} ${toString number} ${all.more or "no more"}"; };
  function = { number, other ? 1, ... }@given: job "function-${toString number}" { meta.description = given.greeting; };
  needs = { nobody-gives-it }: job "needs" { };
  nested.deeply.inside.sets = job "nested" { };
  nested.more = { __functor = self: { number, ... }: { made = job "made-${toString number}" { }; }; };
  marked = { recurseForDerivations = true; it = job "marked" { }; };
  nothing = null;
  empty = { };
  "illegal.name" = job "illegal" { };
  "also illegal" = throw "never looked at";
  quoted."a\"b${"$"}{x}ü" = job "quoted" { };
  lambda = x: x;
  list = [ ];
  string = "text";
  context = "${job "context" { }}";
  path = /.;
  float = 1.5;
  multi = derivation { name = "multi"; outputs = [ "out" "dev" ]; system = "i686-linux"; builder = "/bin/sh"; };
  meta = job "meta" { meta = {
    description = "says \"something\"\nin two lines";
    homepage = "https://example.org/";
    license = [ { shortName = "mit"; free = true; } "gpl" { fullName = "no short one"; } ];
    maintainers = [ { email = "a@example.org"; } { email = "b@example.org"; github = "b"; } ];
    schedulingPriority = 7; timeout = "60"; maxSilent = 30; isHydraChannel = true;
    unused = throw "never looked at";
  }; };
  strange-meta = job "strange" { meta = { description = 1; homepage = job "h" { }; license = { f = x: x; shortName = "no"; }; timeout = "soon"; }; };
  bad-meta = job "bad-meta" { meta.description = throw "bad meta"; };
  no-system = builtins.removeAttrs (job "no-system" { }) [ "system" ];
  unknown-system = job "unknown-system" { system = "unknown"; };
  forged = { type = "derivation"; name = "forged"; system = "x"; drvPath = "/etc/passwd"; outPath = "/etc/passwd"; };
  endless = let set = { inherit set; }; in set;
  traced = builtins.trace "a trace of the expression" (job "traced" { });
}
"#;

#[test]
fn jobs_are_what_hydra_makes_of_them() {
    let bench = Bench::new(SHAPES);
    let found = bench.eval(&[
        "--argstr",
        "greeting",
        "hello ${x} \"ü\"\n",
        "--arg",
        "number",
        "# a comment\n 1 + 2 # another",
        "--argstr",
        "more",
        "and more",
    ]);
    let endless = format!("endless{}", ".set".repeat(31));
    assert_eq!(
        found.names(),
        [
            "arguments",
            "bad-meta",
            "context",
            endless.as_str(),
            "float",
            "forged",
            "function",
            "lambda",
            "list",
            "marked.it",
            "meta",
            "multi",
            "needs",
            "nested.deeply.inside.sets",
            "nested.more.made",
            "no-system",
            "path",
            "plain",
            "quoted.a\"b${x}ü",
            "strange-meta",
            "string",
            "traced",
            "unknown-system",
        ]
    );
    let plain = &found.jobs["plain"];
    let file = bench.src.join("jobs.nix");
    let drvs = bench
        .store
        .instantiate_file(&file, &["-A", "plain", "--argstr", "greeting", ""]);
    let expected = serde_json::json!({
        "nixName": "plain-1.0", "system": "x86_64-linux", "drvPath": drvs[0], "outputs": {"out": bench.store.outputs(&drvs[0])[0]},
        "description": "", "homepage": "", "license": "", "maintainers": "", "schedulingPriority": 100, "timeout": 36000,
        "maxSilent": 7200, "isChannel": false,
    });
    assert_eq!(*plain, expected);
    let description = |job: &str| found.jobs[job]["description"].clone();
    assert_eq!(
        description("arguments"),
        "none hello ${x} \"ü\"\n 3 and more"
    );
    assert_eq!(description("function"), "hello ${x} \"ü\"\n");
    assert_eq!(found.jobs["function"]["nixName"], "function-3");
    assert_eq!(found.jobs["nested.more.made"]["nixName"], "made-3");
    let meta = &found.jobs["meta"];
    assert_eq!(meta["description"], "says \"something\"\nin two lines");
    assert_eq!(
        (&meta["license"], &meta["maintainers"]),
        (&"mit, gpl".into(), &"a@example.org, b@example.org".into())
    );
    let numbers = [
        &meta["schedulingPriority"],
        &meta["timeout"],
        &meta["maxSilent"],
    ];
    assert_eq!(numbers.map(|n| n.as_i64()), [Some(7), Some(60), Some(30)]);
    assert_eq!(meta["isChannel"], true);
    let strange = &found.jobs["strange-meta"];
    for key in ["description", "homepage", "license"] {
        assert_eq!(strange[key], "", "{key}: {strange}");
    }
    assert_eq!(strange["timeout"], 36_000);
    let outputs = found.jobs["multi"]["outputs"].as_object().expect("outputs");
    assert_eq!(outputs.keys().collect::<Vec<_>>(), ["dev", "out"]);
    for (job, error) in [
        ("bad-meta", "error: bad meta"),
        (
            "needs",
            "cannot evaluate a function that has an argument without a value ('nobody-gives-it')",
        ),
        ("no-system", "derivation must have a 'system' attribute"),
        (
            "unknown-system",
            "derivation must have a 'system' attribute",
        ),
        (
            "lambda",
            "error: attribute 'lambda' is a function, which is not supported",
        ),
        ("list", "is a list, which"),
        ("string", "is a string, which"),
        ("context", "is a string with context, which"),
        ("path", "is a path, which"),
        ("float", "is a float, which"),
        (
            &endless,
            "is a set 32 levels deep, and is not looked into: does a set contain itself?",
        ),
        ("forged", "'/etc/passwd' is not a store path"),
    ] {
        assert!(
            found.error(job).contains(error),
            "{job}: {}",
            found.error(job)
        );
        assert!(!found.error(job).contains('\u{1b}'), "{job} has colours");
    }
    for said in [
        "skipping job with illegal name 'illegal.name'",
        "skipping job with illegal name 'also illegal'",
        "trace: a trace of the expression",
        "in job ‘needs’:",
    ] {
        assert!(found.said.contains(said), "{said}: {}", found.said);
    }
}

/// Starts the program of this name that comes behind it on PATH, and writes down with which words and environment.
fn record(bench: &Bench, programs: &[&str]) -> String {
    for name in programs {
        let log = bench.src.join("recorded");
        let script = format!(
            "#!/bin/sh\nprintf '%s %s heap=%s home=%s path=%s\\n' {name} \"$1\" \"$GC_INITIAL_HEAP_SIZE\" \"$HOME\" \"$NIX_PATH\" >> {}\n\
             PATH=${{PATH#*:}} exec {name} \"$@\"\n",
            log.display()
        );
        let place = bench.src.join(name);
        std::fs::write(&place, script).expect("write a wrapper");
        make_executable(&place);
    }
    let path = std::env::var("PATH").expect("PATH");
    format!("{}:{path}", bench.src.path().display())
}

fn make_executable(file: &Path) {
    use std::os::unix::fs::PermissionsExt as _;
    std::fs::set_permissions(file, std::fs::Permissions::from_mode(0o755)).expect("chmod");
}

const AGGREGATES: &str = r#"
let
  job = name: extra: derivation { inherit name; system = "x86_64-linux"; builder = "/bin/sh"; args = [ "-c" "echo > $out" ]; } // extra;
  aggregate = name: constituents: derivation {
    inherit name; system = "x86_64-linux"; builder = "/bin/sh"; args = [ "-c" "echo > $out" ];
    constituents = map (c: if builtins.isString c then c else "${c}") (builtins.filter (c: !(builtins.isString c)) constituents);
  } // { inherit constituents; _hydraAggregate = true; };
  a = job "a" { };
in {
  inherit a;
  b = derivation { name = "b"; outputs = [ "dev" "out" ]; system = "x86_64-linux"; builder = "/bin/sh"; args = [ "-c" "echo > $out; echo > $dev" ]; };
  tests.one = job "one" { };
  tests.two.three = job "two" { };
  bad = throw "this one is bad";
  by-drv = aggregate "by-drv" [ a ];
  none = aggregate "none" [ ];
  by-name = aggregate "by-name" [ a "b" "tests.one" "b" ];
  over = aggregate "over" [ "by-name" ];
  globs = aggregate "globs" [ "tests.*" "a" ] // { _hydraGlobConstituents = true; };
  no-match = aggregate "no-match" [ "nothing.*" ] // { _hydraGlobConstituents = true; };
  broken = aggregate "broken" [ a "bad" "missing" ];
  on-broken = aggregate "on-broken" [ "broken" ];
  ring = aggregate "ring" [ "gnir" ];
  gnir = aggregate "gnir" [ "ring" "a" ];
  lacks = builtins.removeAttrs (aggregate "lacks" [ ]) [ "constituents" ];
}
"#;

#[test]
fn aggregates_have_their_constituents_as_inputs() {
    let bench = Bench::new(AGGREGATES);
    let found = bench.eval(&[]);
    let drv = |job: &str| {
        found.jobs[job]["drvPath"]
            .as_str()
            .expect("drvPath")
            .to_owned()
    };
    let constituents = |job: &str| {
        let list = found.jobs[job]["constituents"]
            .as_array()
            .expect("constituents");
        list.iter()
            .map(|drv| drv.as_str().expect("a path").to_owned())
            .collect::<Vec<_>>()
    };
    let inputs = |job: &str| {
        let references = bench.store.store(&["-q", "--references", &drv(job)]);
        let mut references: Vec<String> = references.lines().map(str::to_owned).collect();
        references.sort();
        references
    };
    let sorted = |jobs: &[&str]| {
        let mut drvs: Vec<String> = jobs.iter().map(|job| drv(job)).collect();
        drvs.sort();
        drvs
    };
    assert_eq!(constituents("by-drv"), [drv("a")]);
    assert_eq!(constituents("none"), [""; 0]);
    assert_eq!(found.jobs["a"]["constituents"], Value::Null);
    for (job, expected) in [
        ("by-name", &["a", "b", "tests.one"][..]),
        ("over", &["by-name"]),
        ("globs", &["tests.one", "tests.two.three", "a"]),
    ] {
        let names: Vec<String> = expected.iter().map(|name| drv(name)).collect();
        assert_eq!(constituents(job), names, "{job}");
        assert_eq!(inputs(job), sorted(expected), "{job}");
        // The path that follows from the new inputs: Nix refuses to build anything else.
        let outputs = bench.store.build(&drv(job));
        assert_eq!(found.jobs[job]["outputs"]["out"], outputs[0], "{job}");
    }
    for (job, error) in [
        ("broken", "bad: error: this one is bad"),
        ("broken", "missing: does not exist\n"),
        ("on-broken", "broken: bad: error: this one is bad"),
        (
            "no-match",
            "nothing.*: constituent glob pattern had no matches\n",
        ),
        ("ring", "gnir: names this aggregate in turn"),
        ("lacks", "derivation must have a 'constituents' attribute"),
    ] {
        assert!(
            found.error(job).contains(error),
            "{job}: {}",
            found.error(job)
        );
    }
    assert_eq!(constituents("broken"), [drv("a")]);
    // A rewritten derivation has a root too.
    bench.store.store(&["--gc"]);
    assert!(bench.store.is_valid(&drv("over")) && bench.store.is_valid(&drv("globs")));
}

#[test]
fn a_dry_run_makes_no_roots_and_rewrites_nothing() {
    let bench = Bench::new(AGGREGATES);
    let found = bench.eval(&["--dry-run"]);
    assert!(!bench.roots().exists());
    let args = ["-A", "by-name"];
    let plain = bench
        .store
        .instantiate_file(&bench.src.join("jobs.nix"), &args);
    assert_eq!(found.jobs["by-name"]["drvPath"], plain[0]);
    assert_eq!(
        found.jobs["by-name"]["constituents"]
            .as_array()
            .map(Vec::len),
        Some(3)
    );
}

#[test]
fn a_job_that_loops_is_ended_and_the_others_go_on() {
    let bench = Bench::new(
        r#"let job = name: derivation { inherit name; system = "x86_64-linux"; builder = "/bin/sh"; };
           loop = depth: if depth == 0 then 0 else builtins.foldl' (a: _: a + loop (depth - 1)) 0 (builtins.genList (x: x) 1000); in
           builtins.listToAttrs (map (n: { name = "j${toString n}"; value = job "j${toString n}"; }) (builtins.genList (n: n) 20))
           // { a = job "${toString (loop 6)}"; j10 = job "${toString (loop 7)}"; }"#,
    )
    .conf("evaluator_job_timeout = 2\nevaluator_workers = 2\n");
    let found = bench.eval(&[]);
    assert_eq!(found.jobs.len(), 21);
    for job in ["a", "j10"] {
        let error = found.error(job);
        assert!(
            error.contains("longer than evaluator_job_timeout allows (2 s)"),
            "{error}"
        );
    }
    let good = found.jobs.values().filter(|job| job.get("error").is_none());
    assert_eq!(good.count(), 19);
}

#[test]
fn a_process_that_is_killed_costs_no_job() {
    // The job kills the process it is evaluated in, once: what it imports is built by that process.
    let bench = Bench::new(
        r#"{ kill }: let job = name: derivation { inherit name; system = "x86_64-linux"; builder = "/bin/sh"; PATH = "/usr/bin:/bin"; args = [ "-c" "echo > $out" ]; };
           murder = name: derivation { inherit name; system = builtins.currentSystem; builder = "/bin/sh"; PATH = "/usr/bin:/bin"; args = [ "-c" kill ]; };
           in { a = job "a"; b = job "b${toString (import (murder "once"))}"; c = job "c"; z = job "z"; }"#,
    )
    .conf("allow_import_from_derivation = true\n");
    let mark = bench.src.join("mark");
    let kill = format!(
        "if test -e {0}; then echo 7 > $out; else touch {0}; kill -9 $PPID; fi",
        mark.display()
    );
    let found = bench.eval(&["--argstr", "kill", &kill]);
    assert!(mark.exists(), "nothing was killed");
    assert_eq!(found.names(), ["a", "b", "c", "z"]);
    assert_eq!(found.jobs["b"]["nixName"], "b7");
    assert_eq!(found.number("error; ", " processes"), 2);
    // Always: then it is that job's own error.
    let always = "kill -9 $PPID";
    let found = bench.eval(&["--argstr", "kill", always]);
    let error = found.error("b");
    assert!(
        error.contains("the process that evaluated this job ended (killed by signal 9"),
        "{error}"
    );
    assert_eq!(
        found
            .jobs
            .values()
            .filter(|job| job.get("error").is_none())
            .count(),
        3
    );
}

#[test]
fn s3_the_initial_heap_reaches_the_evaluating_processes_alone() {
    // An import from a derivation is built and an aggregate rewritten, so builder and store take part.
    let expression = r#"let drv = name: script: derivation { inherit name; system = builtins.currentSystem; builder = "/bin/sh"; args = [ "-c" script ]; PATH = "/usr/bin:/bin"; }; in {
      imports = drv (import (drv "made" "echo \"\\\"heap=$GC_INITIAL_HEAP_SIZE\\\"\" > $out")) "";
      all = drv "all" "" // { _hydraAggregate = true; constituents = [ "imports" ]; };
    }"#;
    let bench = Bench::new(expression)
        .conf("evaluator_initial_heap_size = 64M\nevaluator_workers = 2\nallow_import_from_derivation = true\n");
    let path = record(
        &bench,
        &["nix", "nix-daemon", "nix-store", "nix-instantiate", "git"],
    );
    let src = format!("src={}", bench.src.path().display());
    let mut command = bench.command(&["-I", &src, "<src/jobs.nix>"]);
    let found = found(
        command
            .env("PATH", path)
            .env("NIX_PATH", "x=/y")
            .output()
            .expect("start hydrad"),
    );
    assert_eq!(found.jobs["imports"]["nixName"], "heap=");
    let recorded =
        std::fs::read_to_string(bench.src.join("recorded")).expect("something was started");
    let of = |program: &str| {
        recorded
            .lines()
            .filter(|line| line.starts_with(program))
            .collect::<Vec<_>>()
    };
    let evaluating = of("nix repl ");
    assert!(!evaluating.is_empty(), "{recorded}");
    for line in &evaluating {
        assert!(line.contains(" heap=64M "), "{line}");
        assert!(
            line.contains("/hydrad-eval-") && line.ends_with(" path="),
            "{line}"
        );
    }
    let others: Vec<&str> = recorded
        .lines()
        .filter(|line| !evaluating.contains(line))
        .collect();
    assert!(
        others.iter().any(|line| line.starts_with("nix-daemon")),
        "{recorded}"
    );
    for line in others {
        assert!(line.contains(" heap= "), "{line}");
    }
}

/// A git repository of this flake; its locked reference.
fn flake(bench: &Bench, name: &str, text: &str) -> String {
    let dir = bench.src.join(name);
    std::fs::create_dir(&dir).expect("mkdir");
    std::fs::write(dir.join("flake.nix"), text).expect("write a flake");
    let git = |args: &[&str]| {
        let mut command = Command::new("git");
        command
            .args([
                "-C",
                &dir.display().to_string(),
                "-c",
                "user.name=a",
                "-c",
                "user.email=a@example.org",
            ])
            .args(args);
        common::output_of(&mut command)
    };
    git(&["init", "--quiet"]);
    git(&["add", "flake.nix"]);
    git(&["commit", "--quiet", "-m", "a flake"]);
    let rev = git(&["rev-parse", "HEAD"]);
    format!("git+file://{}?rev={}", dir.display(), rev.trim())
}

const FLAKE_JOB: &str =
    r#"job = name: derivation { inherit name; system = "x86_64-linux"; builder = "/bin/sh"; };"#;

#[test]
fn flakes_need_no_setting_of_nix_conf() {
    let bench = Bench::new("{ }").conf("evaluator_workers = 2\n");
    let eval = |reference: &str| bench.output(&["--flake", reference]);
    let both = flake(
        &bench,
        "both",
        &format!(
            "{{ outputs = {{ self }}: let {FLAKE_JOB} in {{ checks.no = job \"no\";
                hydraJobs = {{ x86_64-linux.a = job \"a\"; b = {{ }}: job \"b\"; bad = throw \"bad\"; rev = job self.rev;
                    impure = job (toString builtins.currentTime); host = import /etc/hostname; }}; }}; }}"
        ),
    );
    let jobs = found(eval(&both));
    assert_eq!(
        jobs.names(),
        ["b", "bad", "host", "impure", "rev", "x86_64-linux.a"]
    );
    assert!(both.ends_with(jobs.jobs["rev"]["nixName"].as_str().expect("a name")));
    assert!(jobs.error("bad").contains("error: bad"));
    // Nix 2.8 does not evaluate purely in `nix repl`: then the flake is restricted instead.
    let restricted = jobs.said.contains("what can be reached is restricted");
    let refused = jobs.error("host");
    assert!(refused.contains("is forbidden in"), "{refused}");
    assert_eq!(jobs.jobs["impure"].get("error").is_none(), restricted);
    let checks = flake(
        &bench,
        "checks",
        &format!("{{ outputs = {{ self }}: let {FLAKE_JOB} in {{ checks.x86_64-linux.c = job \"c\"; }}; }}"),
    );
    assert_eq!(found(eval(&checks)).names(), ["x86_64-linux.c"]);
    let none = flake(
        &bench,
        "none",
        "{ outputs = { self }: { packages = { }; }; }",
    );
    let output = eval(&none);
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(2), "{said}");
    assert!(
        said.contains(&format!(
            "error: flake '{none}' does not provide any Hydra jobs or checks"
        )),
        "{said}"
    );
    let unlocked = both.split('?').next().expect("a reference");
    let output = eval(unlocked);
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(
        !output.status.success() && said.contains("is not locked"),
        "{said}"
    );
}

#[test]
fn what_an_expression_may_reach_is_as_configured() {
    let expression = r#"{ secret }: let job = name: derivation { inherit name; system = "x86_64-linux"; builder = "/bin/sh"; };
        made = derivation { name = "made"; system = builtins.currentSystem; builder = "/bin/sh"; args = [ "-c" "echo '\"imported\"' > $out" ]; PATH = "/usr/bin:/bin"; };
        in { good = job "good"; reads = job (builtins.readFile (/. + secret)); imports = job (import made); path = job (toString (builtins.length builtins.nixPath));
             fetches = job (builtins.readFile (builtins.fetchurl "http://127.0.0.1:1/x")); home = job "home-${builtins.replaceStrings [ "/" ] [ "_" ] (builtins.getEnv "NIX_PATH")}"; }"#;
    let bench = Bench::new(expression);
    let outside = TestDir::new(RunAs::Me);
    std::fs::write(outside.join("secret"), "secret").expect("write a secret");
    let secret = outside.join("secret").display().to_string();
    let args = ["--argstr", "secret", &secret];
    let found = bench.eval(&args);
    assert!(
        found
            .error("reads")
            .contains("is forbidden in restricted mode"),
        "{}",
        found.error("reads")
    );
    assert!(
        found
            .error("fetches")
            .contains("is forbidden in restricted mode"),
        "{}",
        found.error("fetches")
    );
    assert!(
        found.error("imports").contains("import-from-derivation"),
        "{}",
        found.error("imports")
    );
    assert_eq!(found.jobs["home"]["nixName"], "home-");
    assert_eq!(found.jobs["good"]["nixName"], "good");
    for word in ["1", "yes", "TRUE"] {
        let bench =
            Bench::new(expression).conf(&format!("allow_import_from_derivation = {word}\n"));
        let found = bench.eval(&args);
        assert!(
            found.error("imports").contains("import-from-derivation"),
            "{word}"
        );
    }
    let bench = Bench::new(expression).conf("allow_import_from_derivation = true\n");
    // No machine is asked to build it.
    let mut found = bench.eval(&args);
    assert_eq!(
        found.jobs.remove("imports").expect("a job")["nixName"],
        "imported"
    );
    let bench = Bench::new(expression).conf("evaluator_pure_eval = true\n");
    let src = format!("src={}", bench.src.path().display());
    let output = bench.output(&["-I", &src, "--argstr", "secret", &secret, "<src/jobs.nix>"]);
    let said = String::from_utf8_lossy(&output.stderr);
    // There is no search path then, where Nix can do it.
    let restricted = said.contains("what can be reached is restricted");
    assert_eq!(output.status.success(), restricted, "{said}");
}

#[test]
fn what_a_repository_names_is_not_run_by_nixs_git() {
    let expression = r#"let job = name: derivation { inherit name; system = "x86_64-linux"; builder = "/bin/sh"; };
        fetched = builtins.fetchGit ./repo; in builtins.listToAttrs (map
          (n: let name = "j${toString n}"; in { inherit name; value = job (if n == 17 then builtins.seq fetched.outPath name else name); })
          (builtins.genList (n: n) 40))"#;
    let bench = Bench::new(expression);
    flake(&bench, "repo", "{ outputs = _: { }; }");
    let (repo, ran) = (bench.src.join("repo"), bench.src.join("ran"));
    let hook = format!("printf x@y >&2; echo >> {}; :", ran.display());
    let git = |args: &[&str]| {
        let mut command = Command::new("git");
        command.arg("-C").arg(&repo).args(args);
        common::output_of(&mut command)
    };
    git(&["config", "core.fsmonitor", &hook]);
    git(&["status"]);
    assert!(ran.exists(), "git alone runs it");
    std::fs::remove_file(&ran).expect("it was there");
    let found = bench.eval(&[]);
    assert_eq!(found.names().len(), 40);
    for (name, job) in &found.jobs {
        assert_eq!(job["nixName"], name.as_str(), "{job}");
    }
    assert!(!ran.exists(), "a program of the repository was run");
}

#[test]
fn an_expression_that_cannot_be_evaluated_at_all_is_an_error_of_the_run() {
    let bench = Bench::new("{ }: throw \"no jobs today\"");
    let src = format!("src={}", bench.src.path().display());
    let ended = |args: &[&str], path: Option<&str>| {
        let mut command = bench.command(args);
        if let Some(path) = path {
            command.env("PATH", path);
        }
        let output = command.output().expect("start hydrad");
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(2), "{said}");
        assert!(output.stdout.is_empty());
        said
    };
    let said = ended(&["-I", &src, "<src/jobs.nix>"], None);
    assert!(said.contains("hydrad: error: no jobs today"), "{said}");
    let said = ended(&["-I", &src, "<src/missing.nix>"], None);
    assert!(said.contains("missing.nix"), "{said}");
    let said = ended(
        &["-I", &src, "--arg", "x", "{ syntax", "<src/jobs.nix>"],
        None,
    );
    assert!(
        said.contains("no jobs today"),
        "an argument that nobody wants is not looked at: {said}"
    );
    bench.write("wants.nix", "{ x }: builtins.seq x { }");
    let said = ended(
        &["-I", &src, "--arg", "x", "{ syntax", "<src/wants.nix>"],
        None,
    );
    assert!(
        said.contains("syntax error") || said.contains("argument-0.nix"),
        "{said}"
    );
    let said = ended(&["-I", &src, "<src/jobs.nix>"], Some("/nonexistent"));
    assert!(
        said.contains("cannot start nix: No such file or directory"),
        "{said}"
    );
    // What is left in TMPDIR belongs to evaluations that go on.
    bench.write("loop.nix", "let f = d: if d == 0 then 0 else builtins.foldl' (a: _: a + f (d - 1)) 0 (builtins.genList (x: x) 1000); in f 9");
    let tmp = bench.src.sub("tmp", RunAs::Me);
    let entries = || std::fs::read_dir(&tmp).expect("read it").count();
    let mut child = bench
        .command(&["-I", &src, "<src/loop.nix>"])
        .env("TMPDIR", &tmp)
        .spawn()
        .expect("start hydrad");
    let nix = common::eventually("nix should evaluate", || {
        let nix = children(child.id()).into_iter().next()?;
        let file = std::fs::read_to_string(format!("/proc/{nix}/comm")).ok()?;
        (file.trim() == "nix" && entries() == 1).then_some(nix)
    });
    child.kill().expect("kill it");
    child.wait().expect("wait for it");
    common::eventually("what evaluates ends with it", || {
        (!Path::new(&format!("/proc/{nix}")).exists()).then_some(())
    });
    let output = bench
        .command(&["-I", &src, "<src/jobs.nix>"])
        .env("TMPDIR", &tmp)
        .output();
    assert_eq!(output.expect("start hydrad").status.code(), Some(2));
    assert_eq!(entries(), 0);
}

fn children(pid: u32) -> Vec<u32> {
    let tasks = std::fs::read_dir(format!("/proc/{pid}/task"))
        .into_iter()
        .flatten()
        .flatten();
    tasks
        .filter_map(|task| std::fs::read_to_string(task.path().join("children")).ok())
        .flat_map(|pids| {
            pids.split_whitespace()
                .filter_map(|pid| pid.parse().ok())
                .collect::<Vec<u32>>()
        })
        .collect()
}

/// nix-eval-jobs is in no package of Debian's: a program stands for it that prints lines as its documentation describes them.
#[test]
fn nix_eval_jobs_is_led_as_documented() {
    let bench = Bench::new("{ }").conf(
        "evaluator_program = nix-eval-jobs\nevaluator_workers = 3\nevaluator_max_memory_size = 512\nevaluator_initial_heap_size = 1M\n",
    );
    bench.write("its-output", include_str!("eval/nix-eval-jobs.jsonl"));
    let dir = bench.src.path().display().to_string();
    let stand_in = |end: &str| {
        let script = format!(
            "#!/bin/sh\nfor word in \"$@\"; do echo \"$word\"; done > {dir}/words\necho \"heap=$GC_INITIAL_HEAP_SIZE path=$NIX_PATH\" >> {dir}/words\n\
             echo 'warning: a word of its own' >&2\ncat {dir}/its-output\n{end}\n"
        );
        std::fs::write(bench.src.join("nix-eval-jobs"), script).expect("write it");
        make_executable(&bench.src.join("nix-eval-jobs"));
    };
    let path = format!("{dir}:{}", std::env::var("PATH").expect("PATH"));
    let eval = |args: &[&str]| {
        bench
            .command(args)
            .env("PATH", &path)
            .env("NIX_PATH", "x=/y")
            .output()
            .expect("start hydrad")
    };
    stand_in("exit 0");
    let args = [
        "-I",
        "src=/src",
        "--argstr",
        "a",
        "b c",
        "--arg",
        "d",
        "[ 1 ]",
        "--gc-roots-dir",
        "/roots",
        "<src/jobs.nix>",
    ];
    let jobs = found(eval(&args));
    assert_eq!(jobs.names(), ["all", "bad", "hello.x86_64-linux"]);
    let hello = &jobs.jobs["hello.x86_64-linux"];
    assert_eq!(
        (&hello["nixName"], &hello["license"]),
        (&"hello-2.12".into(), &"gpl3Plus".into())
    );
    assert_eq!(hello["maintainers"], "a@example.org, b@example.org");
    assert_eq!(jobs.jobs["all"]["constituents"][0], hello["drvPath"]);
    assert_eq!(jobs.error("bad"), "error: bad");
    for said in [
        "skipping job with illegal name 'a b'",
        "a line of nix-eval-jobs is left out",
        "warning: a word of its own",
    ] {
        assert!(jobs.said.contains(said), "{said}: {}", jobs.said);
    }
    let words = std::fs::read_to_string(bench.src.join("words")).expect("it was started");
    for expected in [
        "<src/jobs.nix>\n-I\nsrc=/src\n",
        "--argstr\na\nb c\n",
        "--arg\nd\n[ 1 ]\n",
        "--gc-roots-dir\n/roots\n",
        "--meta\n--constituents\n--force-recurse\n",
        "--workers\n3\n",
        "--max-memory-size\n512\n",
        "--option\nrestrict-eval\ntrue\n",
        "--option\nallow-import-from-derivation\nfalse\n",
        "heap=1M path=\n",
    ] {
        assert!(words.contains(expected), "{expected:?}: {words}");
    }
    found(eval(&[
        "--flake",
        "git+file:///x?rev=0123456789012345678901234567890123456789",
    ]));
    let words = std::fs::read_to_string(bench.src.join("words")).expect("it was started");
    assert!(
        words.contains("--flake\ngit+file:///x?rev=0123456789012345678901234567890123456789\n--select\nflake: flake.outputs.hydraJobs or"),
        "{words}"
    );
    assert!(
        words.contains("--option\npure-eval\ntrue\n") && !words.contains("--impure"),
        "{words}"
    );
    stand_in("echo 'error: worker died' >&2; exit 3");
    let output = eval(&args);
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(2));
    assert!(
        said.contains(
            "nix-eval-jobs returned exit code 3:\nwarning: a word of its own\nerror: worker died"
        ),
        "{said}"
    );
}
