//! Destination stores: what hydrad writes is a binary cache that Nix itself reads and believes, however it came there.

mod common;

use std::fs;
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::process::Command;

use common::{
    eventually, output_of, said, FarMachine, Farm, Hydrad, NixStore, RunAs, Running, S3Auth,
    S3Server, SecondStore, TestDir,
};

/// A folder for a cache, with a key to sign it.
struct Cache {
    dir: TestDir,
}

impl Cache {
    fn new(store: &NixStore) -> Cache {
        let dir = TestDir::new(store.owner());
        dir.sub("cache", store.owner());
        store.signing_key(&dir);
        Cache { dir }
    }

    fn path(&self) -> PathBuf {
        self.dir.join("cache")
    }

    /// What goes into hydra.conf; `params` come behind the key.
    fn conf(&self, params: &str) -> String {
        format!(
            "store_uri = file://{}?secret-key={}{params}\nretry_interval = 1\n",
            self.path().display(),
            self.dir.join("secret").display()
        )
    }

    fn public_key(&self) -> String {
        fs::read_to_string(self.dir.join("public")).expect("a key")
    }

    fn narinfo(&self, path: &str) -> Option<String> {
        fs::read_to_string(self.path().join(format!("{}.narinfo", hash(path)))).ok()
    }

    /// Over plain HTTP, as people serve caches.
    fn serve(&self) -> Server {
        let mut command = RunAs::Me.command("python3");
        command
            .args(["-u", "-m", "http.server", "--bind", "127.0.0.1", "0"])
            .arg("--directory")
            .arg(self.path());
        let log = self.dir.join("http.log");
        let mut running = Running::start(command, "http.server", &log, libc::SIGTERM);
        let line = running.wait_log("Serving HTTP on ");
        let port = line.split(" port ").nth(1).expect("a port");
        let port = port.split_whitespace().next().expect("a port").to_owned();
        Server {
            _running: running,
            url: format!("http://127.0.0.1:{port}"),
        }
    }
}

struct Server {
    _running: Running,
    url: String,
}

fn hash(path: &str) -> &str {
    &Path::new(path)
        .file_name()
        .and_then(|name| name.to_str())
        .expect("a name")[..32]
}

/// A job with its attributes and script, as a file for `hydrad enqueue`.
fn job(store: &NixStore, name: &str, attrs: &str, script: &str) -> String {
    store
        .instantiate(&format!(
            r#"let mk = name: attrs: script: derivation ({{ inherit name; system = builtins.currentSystem; builder = "/bin/sh";
                 PATH = "/usr/bin:/bin"; args = [ "-ec" script ]; }} // attrs);
               in mk "{name}" {{ {attrs} }} ''{script}''"#
        ))
        .remove(0)
}

/// Realise a path in a store that has nothing, from one substituter, believing one key.
fn realise(store: &SecondStore, path: &str, substituter: &str, key: &str) -> Command {
    let mut command = store.command("nix-store");
    command
        .args(["-r", path, "--option", "substituters", substituter])
        .args(["--option", "require-sigs", "true"])
        .args(["--option", "trusted-public-keys", key.trim()]);
    command
}

fn read_in(store: &SecondStore, path: &str) -> String {
    output_of(store.command("cat").arg(path))
}

fn build(farm: &Farm, hydrad: &mut Hydrad, drv: &str) -> i32 {
    let build = farm.enqueue(&[drv])[0];
    farm.wait_ended(hydrad, &[build]);
    build
}

fn machine_line(name: &str, slots: u32) -> String {
    format!("{name} {} - {slots} 1 - -\n", common::system())
}

#[test]
fn what_machines_build_is_served_to_another_store_that_requires_signatures() {
    let store = NixStore::owned_by(RunAs::Unprivileged);
    let far = FarMachine::new(&store, "builder");
    let cache = Cache::new(&store);
    let farm = Farm::new(&store)
        .with_conf(&cache.conf("&compression=zstd&write-nar-listing=true"))
        .with_machines(&machine_line("builder", 1));
    let lib = r#"outputs = [ "out" "dev" ]; src = builtins.toFile "source" "the source";"#;
    let lib_script = "cat $src > $out; mkdir $dev; ln -s $out $dev/lib; echo $src > $dev/from";
    let lib_drv = job(&store, "lib", lib, lib_script);
    let lib = format!(r#"lib = (mk "lib" {{ {lib} }} ''{lib_script}'').dev;"#);
    let app_script = "cat $lib/lib > $out; echo and the app >> $out; echo $lib >> $out";
    let app_drv = job(&store, "app", &lib, app_script);
    let top = format!(r#"app = mk "app" {{ {lib} }} ''{app_script}'';"#);
    let top_drv = job(
        &store,
        "top",
        &top,
        "mkdir -p $out/nix-support; cat $app > $out/text; echo file text $out/text > $out/nix-support/hydra-build-products",
    );
    let outputs = store.outputs(&lib_drv);
    let (dev, out): (Vec<&String>, Vec<&String>) =
        outputs.iter().partition(|path| path.ends_with("-dev"));
    let (dev, out) = (dev[0], out[0]);
    let (app, top) = (
        store.outputs(&app_drv).remove(0),
        store.outputs(&top_drv).remove(0),
    );

    let mut hydrad = farm.run(&far.env());
    hydrad.wait_log("signed as test-1");
    let builds = build(&farm, &mut hydrad, &lib_drv);
    assert_eq!(farm.statuses(&[builds]), [Some(0)], "{}", hydrad.log());
    assert!(cache.narinfo(out).is_some() && cache.narinfo(dev).is_some());
    assert!(!store.is_valid(out), "it did not stay here on its way");

    // Now on this host, which has to get its input from the cache.
    let farm = farm.with_machines(&machine_line("localhost", 1));
    hydrad.hang_up();
    let builds = build(&farm, &mut hydrad, &app_drv);
    assert_eq!(farm.statuses(&[builds]), [Some(0)], "{}", hydrad.log());
    assert!(store.is_valid(dev) && store.is_valid(&app));
    assert!(cache.narinfo(&app).is_some());

    let farm = farm.with_machines(&machine_line("builder", 1));
    hydrad.hang_up();
    let builds = build(&farm, &mut hydrad, &top_drv);
    assert_eq!(farm.statuses(&[builds]), [Some(0)], "{}", hydrad.log());
    let sql = "select p.sha256hash, p.fileSize, b.size, b.closureSize from BuildProducts p join Builds b on b.id = p.build
               where b.id = $1";
    let row = farm.client().query_one(sql, &[&builds]).expect(sql);
    let text = format!("the sourceand the app\n{dev}\n");
    assert_eq!(row.get::<_, i64>(1), text.len() as i64);
    let (size, closure): (i64, i64) = (row.get(2), row.get(3));
    assert!(size > 0 && closure > size, "{size} of {closure}");
    assert!(hydrad.terminate().success());

    // A store with nothing of its own, over HTTP: it takes what is signed, and nothing else.
    let server = cache.serve();
    let stranger = store.second();
    let other_key = "test-1:XXXXXXXXXXXXXXXXXXXXXXXXXXXXXXXXXXXXXXXXXXX=";
    let refused = realise(&stranger, &top, &server.url, other_key)
        .output()
        .expect("start nix-store");
    assert!(!refused.status.success() && !stranger.is_valid(&top));
    let stranger = store.second();
    output_of(&mut realise(
        &stranger,
        &top,
        &server.url,
        &cache.public_key(),
    ));
    assert_eq!(read_in(&stranger, &format!("{top}/text")), text.trim_end());
    let source = store.store(&["-q", "--references", &lib_drv]);
    let source = source.lines().find(|path| path.ends_with("-source"));
    let source = source.expect("lib.dev refers to its source");
    assert!(stranger.is_valid(source) && cache.narinfo(source).is_some());

    // The listing says where in the NAR the file is.
    let listing = fs::read_to_string(cache.path().join(format!("{}.ls", hash(&top)))).unwrap();
    let listing: serde_json::Value = serde_json::from_str(&listing).expect("JSON");
    let entry = &listing["root"]["entries"]["text"];
    assert_eq!(entry["size"], text.len(), "{listing}");
    let nar = output_of(stranger.command("nix-store").args(["--dump", &top]));
    let at = entry["narOffset"].as_u64().expect("an offset") as usize;
    assert_eq!(&nar[at..at + text.len()], text);
}

#[test]
fn a_bucket_is_a_cache_that_another_store_believes_and_a_restart_finds() {
    let server = S3Server::start(S3Auth::Open);
    server.make_bucket("cache");
    let store = NixStore::owned_by(RunAs::Unprivileged);
    let far = FarMachine::new(&store, "builder");
    let cache = Cache::new(&store);
    let farm = Farm::new(&store)
        .with_conf(&format!(
            "store_uri = s3://cache?endpoint={}&secret-key={}&compression=zstd&multipart-threshold=1&multipart-chunk-size=1\n",
            server.endpoint(),
            cache.dir.join("secret").display()
        ))
        .with_machines(&machine_line("builder", 1));
    // Larger than a part of an upload, and not compressible.
    let large = "head -c 6000000 /dev/urandom > $out";
    let large_drv = job(&store, "large", "", large);
    let input = format!("large = mk \"large\" {{ }} ''{large}'';");
    let top_drv = job(
        &store,
        "top",
        &input,
        "echo $large > $out; cat $large | wc -c >> $out",
    );
    let (large, top) = (
        store.outputs(&large_drv).remove(0),
        store.outputs(&top_drv).remove(0),
    );
    let mut env = far.env();
    env.extend(
        ["AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"].map(|name| (name.into(), "k".into())),
    );

    let mut hydrad = farm.run(&env);
    hydrad.wait_log("the binary cache s3://cache (signed as test-1)");
    let builds = build(&farm, &mut hydrad, &top_drv);
    assert_eq!(farm.statuses(&[builds]), [Some(0)], "{}", hydrad.log());
    assert!(!store.is_valid(&top) && !store.is_valid(&large));
    let status = output_of(&mut farm.command(&["status", "--json"]));
    let status: serde_json::Value = serde_json::from_str(&status).expect("JSON");
    let s3 = &status["queueRunner"]["s3"];
    assert!(s3["putBytes"].as_u64() > Some(6_000_000), "{s3}");
    assert!(s3["costDollarApprox"].as_f64() > Some(0.0), "{s3}");
    assert!(hydrad.terminate().success());
    let kinds = server.python(
        "for o in s3.list_objects_v2(Bucket='cache')['Contents']:\n\
         \x20 key = o['Key']; s3.put_object_acl(Bucket='cache', Key=key, ACL='public-read')\n\
         \x20 h = s3.head_object(Bucket='cache', Key=key)\n\
         \x20 print(key.rpartition('.')[2], h['ContentType'], h['ETag'].rpartition('-')[2].strip(chr(34))[:3])",
    );
    assert!(
        kinds.contains("narinfo text/x-nix-narinfo")
            && kinds.contains("zst application/x-nix-nar 2"),
        "in two parts: {kinds}"
    );

    // As a public bucket is read: over HTTP, without credentials.
    let stranger = store.second();
    let url = format!("{}/cache", server.endpoint());
    output_of(&mut realise(&stranger, &top, &url, &cache.public_key()));
    assert_eq!(read_in(&stranger, &top), format!("{large}\n6000000"));

    // Nothing of it is here, and nothing is built again.
    let mut hydrad = farm.run(&env);
    hydrad.wait_log("ready: ");
    let again = build(&farm, &mut hydrad, &top_drv);
    let sql = "select buildStatus, isCachedBuild from Builds where id = $1";
    let row = farm.client().query_one(sql, &[&again]).expect(sql);
    assert_eq!((row.get(0), row.get(1)), (Some(0), Some(1)));
}

/// The whole answer.
fn get(address: &str, path: &str) -> String {
    let mut stream = std::net::TcpStream::connect(address).expect("connect");
    write!(
        stream,
        "GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
    )
    .expect("ask");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).expect("an answer");
    answer
}

/// What the local store's nix.conf says besides the usual.
fn nix_conf(store: &NixStore, lines: &str) {
    let path = store.dir().join("conf/nix.conf");
    let mut text = fs::read_to_string(&path).expect("nix.conf");
    text += lines;
    fs::write(&path, text).expect("write nix.conf");
}

/// The finished steps of a build: type, status, machine, name and path of the outputs.
fn steps(farm: &Farm, build: i32) -> Vec<(i32, Option<i32>, String, String, String)> {
    let sql = "select s.type, s.status, s.machine, o.name, o.path from BuildSteps s
               join BuildStepOutputs o on o.build = s.build and o.stepnr = s.stepnr
               where s.build = $1 and s.busy = 0 and s.startTime > 0 and s.stopTime >= s.startTime
               order by s.stepnr, o.name";
    let rows = farm.client().query(sql, &[&build]).expect(sql);
    rows.iter()
        .map(|row| (row.get(0), row.get(1), row.get(2), row.get(3), row.get(4)))
        .collect()
}

#[test]
fn what_a_substituter_has_is_not_built_and_what_nobody_signed_is() {
    let store = NixStore::owned_by(RunAs::Unprivileged);
    let cache = Cache::new(&store);
    let lib =
        r#"lib = mk "lib" { outputs = [ "out" "dev" ]; } ''echo lib > $out; echo $out > $dev'';"#;
    let lib_drv = job(
        &store,
        "lib",
        r#"outputs = [ "out" "dev" ];"#,
        "echo lib > $out; echo $out > $dev",
    );
    let app = format!(r#"app = mk "app" {{ {lib} }} ''cat $lib > $out; echo $lib >> $out'';"#);
    let app_drv = job(&store, "app", lib, "cat $lib > $out; echo $lib >> $out");
    let odd = r#"odd = mk "odd" { } ''echo odd > $out'';"#;
    let odd_drv = job(&store, "odd", "", "echo odd > $out");
    let top_drv = job(
        &store,
        "top",
        &format!("{app} {odd}"),
        "cat $app $odd > $out",
    );
    // A cache that has these, one of them without a signature; here they are gone.
    for (drv, key) in [(&lib_drv, true), (&app_drv, true), (&odd_drv, false)] {
        let mut to = format!("file://{}?compression=none", cache.path().display());
        if key {
            to += &format!("&secret-key={}", cache.dir.join("secret").display());
        }
        store.build(drv);
        let args = ["copy", "--to", &to];
        output_of(store.command("nix").args(args).args(store.outputs(drv)));
    }
    let all: Vec<String> = [&app_drv, &lib_drv, &odd_drv]
        .iter()
        .flat_map(|drv| store.outputs(drv))
        .collect();
    output_of(store.command("nix-store").arg("--delete").args(&all));
    let server = cache.serve();
    nix_conf(
        &store,
        &format!(
            "substituters = {}\nrequire-sigs = true\ntrusted-public-keys = {}\ndownload-attempts = 1\n",
            server.url,
            cache.public_key().trim()
        ),
    );
    let farm = Farm::new(&store)
        .with_conf("use-substitutes = true\n")
        .with_machines(&machine_line("localhost", 2));
    let mut hydrad = farm.run(&[]);
    hydrad.wait_log("ready: ");
    let top = build(&farm, &mut hydrad, &top_drv);
    assert_eq!(farm.statuses(&[top]), [Some(0)], "{}", hydrad.log());
    let (app, odd) = (
        store.outputs(&app_drv).remove(0),
        store.outputs(&odd_drv).remove(0),
    );
    let top_out = store.outputs(&top_drv).remove(0);
    let mut seen = steps(&farm, top);
    seen.sort_by_key(|step| (step.0, step.4.ends_with("-top")));
    let local = "localhost".to_owned();
    assert_eq!(
        seen,
        [
            (0, Some(0), local.clone(), "out".into(), odd),
            (0, Some(0), local, "out".into(), top_out),
            (1, Some(0), String::new(), "out".into(), app),
        ],
        "{}",
        hydrad.log()
    );
    hydrad.wait_log(&format!("cannot fetch the outputs of '{odd_drv}'"));
    assert!(hydrad.log().contains("trusted-public-keys"));

    // All outputs of one derivation, each with a row of its own under the name that Hydra gives it. The conversations in
    // which they were fetched keep them from being deleted.
    let lib_outputs = store.outputs(&lib_drv);
    let unreferenced = lib_outputs.iter().find(|path| path.ends_with("-dev"));
    let unreferenced = unreferenced.expect("an output that nothing refers to");
    assert!(hydrad.terminate().success());
    eventually("one output can be deleted", || {
        let mut delete = store.command("nix-store");
        delete.args(["--delete", "--ignore-liveness", unreferenced]);
        let deleted = delete.output().expect("start nix-store");
        deleted.status.success().then_some(())
    });
    let mut hydrad = farm.run(&[]);
    hydrad.wait_log("ready: ");
    let missing: Vec<&String> = lib_outputs
        .iter()
        .filter(|out| !store.is_valid(out))
        .collect();
    assert!(!missing.is_empty());
    let lib = build(&farm, &mut hydrad, &lib_drv);
    assert_eq!(farm.statuses(&[lib]), [Some(0)], "{}", hydrad.log());
    let seen: Vec<String> = steps(&farm, lib)
        .into_iter()
        .filter(|(kind, _, _, name, _)| *kind == 1 && name == "out")
        .map(|step| step.4)
        .collect();
    assert_eq!(seen.iter().collect::<Vec<_>>(), missing, "{}", hydrad.log());
    let sql = "select isCachedBuild, buildStatus from Builds where id = $1";
    let row = farm.client().query_one(sql, &[&lib]).expect(sql);
    assert_eq!((row.get(0), row.get(1)), (Some(1), Some(0)));

    // Nobody answers there any more: everything is built, and the log says why.
    drop(server);
    let alone_drv = job(&store, "alone", "", "echo alone > $out");
    let alone = build(&farm, &mut hydrad, &alone_drv);
    assert_eq!(farm.statuses(&[alone]), [Some(0)], "{}", hydrad.log());
    hydrad.wait_log("substituters are not asked for 60 seconds");
    assert_eq!(steps(&farm, alone)[0].0, 0);
    assert!(hydrad.terminate().success());
}

#[test]
fn what_is_only_in_the_local_store_goes_into_the_cache_before_its_dependents_start() {
    let store = NixStore::owned_by(RunAs::Unprivileged);
    let cache = Cache::new(&store);
    let lib = r#"lib = mk "lib" { } ''echo lib > $out'';"#;
    let lib_drv = job(&store, "lib", "", "echo lib > $out");
    let top_drv = job(&store, "top", lib, "cat $lib > $out; echo $lib >> $out");
    let lib = store.build(&lib_drv).remove(0);
    let far = FarMachine::new(&store, "builder");
    let farm = Farm::new(&store)
        .with_conf(&cache.conf("&compression=none"))
        .with_machines(&machine_line("builder", 1));
    let mut hydrad = farm.run(&far.env());
    hydrad.wait_log("ready: ");
    let top = build(&farm, &mut hydrad, &top_drv);
    assert_eq!(farm.statuses(&[top]), [Some(0)], "{}", hydrad.log());
    assert!(cache.narinfo(&lib).is_some());
    let seen = steps(&farm, top);
    assert_eq!(
        seen[0],
        (1, Some(0), String::new(), "out".into(), lib),
        "{}",
        hydrad.log()
    );
    assert_eq!((seen.len(), seen[1].0, &*seen[1].2), (2, 0, "builder"));
}

#[test]
fn a_log_gets_into_the_cache_whoever_compresses_it_and_whatever_ends_meanwhile() {
    let store = NixStore::owned_by(RunAs::Unprivileged);
    let cache = Cache::new(&store);
    let farm = Farm::new(&store)
        .with_conf(&cache.conf("&compression=none"))
        .with_conf("upload_logs_to_binary_cache = true\n")
        .with_machines(&machine_line("localhost", 1));
    let in_cache = |drv: &str| {
        let name = Path::new(drv).file_name().expect("a name");
        fs::read_to_string(cache.path().join("log").join(name))
    };
    let name = |drv: &str| drv.rsplit('/').next().expect("a name").to_owned();

    // The end of hydrad waits for the last of them. A failed build has one too.
    let good_drv = job(&store, "good", "", "echo a good log; echo > $out");
    let bad_drv = job(&store, "bad", "", "echo a bad log; exit 1");
    let mut hydrad = farm.run(&[]);
    hydrad.wait_log("ready: ");
    let builds = farm.enqueue(&[&good_drv, &bad_drv]);
    farm.wait_ended(&mut hydrad, &builds);
    assert!(hydrad.terminate().success());
    assert_eq!(farm.statuses(&builds), [Some(0), Some(1)]);
    for (drv, text) in [(&good_drv, "a good log\n"), (&bad_drv, "a bad log\n")] {
        assert_eq!(in_cache(drv).expect("a log in the cache"), text);
        assert_eq!(
            fs::read_to_string(farm.log_path(drv)).expect("the local file stays"),
            text
        );
    }
    let server = cache.serve();
    let mut nix = store.command("nix");
    nix.args(["log", "--option", "substituters", &server.url, &good_drv]);
    assert_eq!(output_of(&mut nix), "a good log");

    // It cannot be written: the build is none the worse. Then hydrad is killed, and somebody compresses the log.
    let folder = cache.path().join("log");
    fs::rename(&folder, cache.path().join("old")).expect("rename");
    fs::write(&folder, "in the way").expect("write");
    let late_drv = job(&store, "late", "", "echo a late log; echo > $out");
    let mut hydrad = farm.run(&[]);
    hydrad.wait_log("ready: ");
    let late = build(&farm, &mut hydrad, &late_drv);
    assert_eq!(farm.statuses(&[late]), [Some(0)]);
    hydrad.wait_log(&format!("cannot upload the log of {}", name(&late_drv)));
    hydrad.kill_9();
    output_of(RunAs::Me.command("bzip2").arg(farm.log_path(&late_drv)));
    assert!(!farm.log_path(&late_drv).exists());
    fs::remove_file(&folder).expect("remove");
    let mut hydrad = farm.run(&[]);
    let text = hydrad.eventually("the log should be uploaded", || in_cache(&late_drv).ok());
    assert_eq!(text, "a late log\n");
    hydrad.eventually("nothing should be left to do", || {
        let left = fs::read_dir(farm.dir().join("queue-runner/log-uploads")).expect("a spool");
        (left.count() == 0).then_some(())
    });
}

#[test]
fn what_others_did_to_the_cache_is_seen_once_it_is_forgotten_or_missed() {
    let store = NixStore::owned_by(RunAs::Unprivileged);
    let far = FarMachine::new(&store, "builder");
    let cache = Cache::new(&store);
    let farm = Farm::new(&store)
        .with_conf(&cache.conf("&compression=none"))
        .with_conf("status_address = 127.0.0.1:0\nqueue_runner_metrics_address = 127.0.0.1:0\n")
        .with_machines(&machine_line("builder", 1));
    let lib = r#"lib = mk "lib" { } ''echo lib > $out'';"#;
    let farm = farm.with_conf("connection_idle = 1\n");
    let lib_drv = job(&store, "lib", "", "echo lib > $out");
    let lib = (lib, store.outputs(&lib_drv).remove(0));
    let mut hydrad = farm.run(&far.env());
    hydrad.wait_log("ready: ");
    build(&farm, &mut hydrad, &lib_drv);
    let narinfo = cache.path().join(format!("{}.narinfo", hash(&lib.1)));
    let aside = cache.dir.join("aside");

    // Believed to be there, until somebody says that it is not.
    fs::rename(&narinfo, &aside).expect("rename");
    let forget = |words: &[&str]| {
        let mut command = farm.command(&["cache", "forget", "--json"]);
        let text = output_of(command.args(words));
        serde_json::from_str::<serde_json::Value>(&text).expect("JSON")
    };
    let before = forget(&["--all"]);
    assert!(before["forgotten"].as_u64() > Some(0), "{before}");
    assert_eq!(before["remembered"], 0, "{before}");
    assert_eq!(forget(&[&lib.1])["forgotten"], 0);
    for wrong in ["nonsense", "/nix/store/short", &format!("{}/bin", lib.1)] {
        let output = farm.command(&["cache", "forget", wrong]).output();
        let output = output.expect("start hydrad");
        assert_eq!(output.status.code(), Some(2), "{wrong}");
    }
    build(&farm, &mut hydrad, &lib_drv);
    assert!(narinfo.exists(), "made or fetched again: {}", hydrad.log());

    // The whole of it is wiped while hydrad believes in it: what is used next finds that out, and all is made again.
    fs::remove_dir_all(cache.path().join("nar")).expect("wipe");
    for entry in fs::read_dir(cache.path()).expect("a folder") {
        let path = entry.expect("an entry").path();
        if path.extension().is_some_and(|end| end == "narinfo") {
            fs::remove_file(path).expect("wipe");
        }
    }
    let top_drv = job(&store, "top", lib.0, "cat $lib > $out; echo $lib >> $out");
    // The machine has it too, and keeps it while it is connected.
    hydrad.eventually("the machine should collect it", || {
        let mut delete = far.store.command("nix-store");
        let output = delete.args(["--delete", &lib.1]).output();
        output
            .expect("start nix-store")
            .status
            .success()
            .then_some(())
    });
    let top = build(&farm, &mut hydrad, &top_drv);
    assert_eq!(farm.statuses(&[top]), [Some(0)], "{}", hydrad.log());
    hydrad.wait_log("is not in the binary cache");
    assert!(
        cache.narinfo(&lib.1).is_some() && cache.narinfo(&store.outputs(&top_drv)[0]).is_some()
    );

    // All of that is counted, everywhere under the same numbers.
    let status = output_of(&mut farm.command(&["status", "--json"]));
    let status: serde_json::Value = serde_json::from_str(&status).expect("JSON");
    let counted = &status["queueRunner"]["store"];
    assert!(counted["narWrite"].as_u64() >= Some(3), "{counted}");
    assert!(counted["narInfoWrite"].as_u64() >= counted["narWrite"].as_u64());
    assert_eq!(status["queueRunner"]["s3"], serde_json::Value::Null);
    let address = |what: &str, log: &str| {
        let line = log.lines().find(|line| line.contains(what)).expect(what);
        let at = line.split("http://").nth(1).expect("an address");
        at.split('/').next().expect("an address").to_owned()
    };
    let log = hydrad.log();
    let page = get(&address("/metrics", &log), "/metrics");
    let sample = format!(
        "hydraqueuerunner_store_nar_write_total {}",
        counted["narWrite"]
    );
    assert!(
        page.contains(&sample) || page.contains(&sample.replace("_total", "")),
        "{page}"
    );
    let page = get(&address("/status", &log), "/status");
    let (_, body) = page.split_once("\r\n\r\n").expect("a body");
    let page: serde_json::Value = serde_json::from_str(body).expect("JSON");
    assert_eq!(page["store"]["narWrite"], counted["narWrite"], "{page}");
    assert_eq!(page["s3"], serde_json::json!({}));
}

#[test]
fn any_other_store_is_written_through_nix_copy_and_its_errors_are_told() {
    let store = NixStore::owned_by(RunAs::Unprivileged);
    let dir = TestDir::new(store.owner());
    dir.sub("other", store.owner());
    let uri = format!(
        "local?root={}&store={}",
        dir.join("other").display(),
        store.store_dir().display()
    );
    let lib = r#"lib = mk "lib" { } ''echo lib > $out'';"#;
    let lib_drv = job(&store, "lib", "", "echo lib > $out");
    let top_drv = job(&store, "top", lib, "cat $lib > $out; echo $lib >> $out");
    // One input is in the local store only, and is copied before its dependent starts.
    let lib = store.build(&lib_drv).remove(0);
    let far = FarMachine::new(&store, "builder");
    let farm = Farm::new(&store)
        .with_conf(&format!("store_uri = {uri}\nretry_interval = 1\n"))
        .with_machines(&machine_line("builder", 1));
    let mut hydrad = farm.run(&far.env());
    hydrad.wait_log("(through `nix copy`)");
    let top = build(&farm, &mut hydrad, &top_drv);
    assert_eq!(farm.statuses(&[top]), [Some(0)], "{}", hydrad.log());
    let top = store.outputs(&top_drv).remove(0);
    for path in [&lib, &top] {
        let mut check = store.command("nix");
        check.args(["path-info", "--store", &uri, path]);
        assert_eq!(output_of(&mut check), *path);
    }
    assert!(hydrad.terminate().success());

    let farm = farm.with_conf("store_uri = nonsense://x\n");
    let refused = farm.command(&["run"]).output().expect("start hydrad");
    let words = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert_eq!(refused.status.code(), Some(2), "{words}");
    assert!(
        words.contains("store_uri = nonsense://x") && words.contains("open Nix store"),
        "{words}"
    );
}

#[test]
fn a_store_behind_ssh_gets_what_is_built_and_ssh_is_quoted_when_it_is_away() {
    let store = NixStore::owned_by(RunAs::Unprivileged);
    let lib = r#"lib = mk "lib" { } ''echo lib > $out'';"#;
    let top_drv = job(&store, "top", lib, "cat $lib > $out; echo $lib >> $out");
    let shelf = FarMachine::new(&store, "shelf");
    let env = shelf.env();
    let farm = Farm::new(&store)
        .with_conf("store_uri = ssh://shelf\nretry_interval = 1\n")
        .with_machines(&machine_line("localhost", 1));
    let mut hydrad = farm.run(&env);
    hydrad.wait_log("ssh://shelf (through `nix copy`)");
    let top = build(&farm, &mut hydrad, &top_drv);
    assert_eq!(farm.statuses(&[top]), [Some(0)], "{}", hydrad.log());
    assert!(hydrad.terminate().success());
    let top = store.outputs(&top_drv).remove(0);
    for path in shelf.store.store(&["-qR", &top]).lines() {
        assert!(shelf.store.is_valid(path), "{path}");
    }
    assert!(shelf.store.is_valid(&top));

    // With the machine goes the file that tells ssh how to reach it.
    drop(shelf);
    let mut again = farm.program(&["run"]).envs(env).command();
    let refused = said(&mut again).ends_with(2);
    refused.complains(&[
        "store_uri = ssh://shelf",
        "Can't open user config file",
        "cannot connect to 'shelf'",
    ]);
}

#[test]
fn nix_reads_each_compression_and_a_killed_hydrad_goes_on() {
    let store = NixStore::owned_by(RunAs::Unprivileged);
    let cache = Cache::new(&store);
    let text = "of text that is long enough to be worth compressing ".repeat(50);
    let jobs = |compression: &str| {
        let script = format!("echo {compression} {text} > $out");
        let input = format!(r#"lib = mk "{compression}-lib" {{ }} ''{script}'';"#);
        // The input's path is read at the end, so a kill in between leaves it in the cache and the top to be done.
        let top = job(
            &store,
            &format!("{compression}-top"),
            &input,
            "sleep 2; cat $lib > $out; echo $lib >> $out",
        );
        (job(&store, &format!("{compression}-lib"), "", &script), top)
    };
    let server = cache.serve();
    for compression in ["xz", "zstd", "bzip2", "none"] {
        let params = format!("&compression={compression}&parallel-compression=true");
        let farm = Farm::new(&store)
            .with_conf(&cache.conf(&params))
            .with_machines(&machine_line("localhost", 1));
        let (lib_drv, top_drv) = jobs(compression);
        let lib = store.outputs(&lib_drv).remove(0);
        let top = store.outputs(&top_drv).remove(0);
        let mut hydrad = farm.run(&[]);
        let build = farm.enqueue(&[&top_drv])[0];
        hydrad.eventually("the input is in the cache and its dependent runs", || {
            let sql = "select count(*) from BuildSteps where busy = 30 and drvPath = $1";
            let busy: i64 = farm.client().query_one(sql, &[&top_drv]).expect(sql).get(0);
            (busy == 1 && cache.narinfo(&lib).is_some()).then_some(())
        });
        hydrad.kill_9();
        assert!(cache.narinfo(&top).is_none());

        let mut hydrad = farm.run(&[]);
        farm.wait_ended(&mut hydrad, &[build]);
        assert_eq!(farm.statuses(&[build]), [Some(0)], "{}", hydrad.log());
        let info = cache.narinfo(&top).expect("a narinfo");
        assert!(
            info.contains(&format!("Compression: {compression}\n")),
            "{info}"
        );
        let stranger = store.second();
        output_of(&mut realise(
            &stranger,
            &top,
            &server.url,
            &cache.public_key(),
        ));
        let read = read_in(&stranger, &top);
        assert!(
            read.starts_with(&format!("{compression} {}", text.trim_end())),
            "{read}"
        );
        assert!(hydrad.terminate().success());
    }
}

#[test]
fn check_looks_at_the_destination_and_makes_nothing() {
    let store = NixStore::owned_by(RunAs::Unprivileged);
    let cache = Cache::new(&store);
    let rows = |conf: &str| -> Vec<serde_json::Value> {
        let farm = Farm::new(&store).with_conf(conf);
        let report = said(&mut farm.command(&["check", "--json"])).json();
        let rows = report["rows"].as_array().expect("rows").clone();
        rows.into_iter()
            .filter(|row| row["what"] == "destination" || row["what"] == "signatures")
            .collect()
    };
    assert!(rows("").is_empty(), "the local store has rows of its own");

    let signed = rows(&cache.conf(""));
    assert_eq!(
        (signed.len(), &signed[0]["mark"]),
        (1, &"ok".into()),
        "{signed:?}"
    );
    let unsigned = rows(&format!("store_uri = file://{}\n", cache.path().display()));
    assert_eq!(
        (unsigned.len(), &unsigned[1]["mark"]),
        (2, &"note".into()),
        "{unsigned:?}"
    );
    let made = fs::read_dir(cache.path()).expect("the folder").count();
    assert_eq!(made, 0, "nothing was made");

    let problem = |conf: &str, word: &str| {
        let rows = rows(conf);
        assert_eq!(
            (rows.len(), &rows[0]["mark"]),
            (1, &"problem".into()),
            "{rows:?}"
        );
        let note = rows[0]["note"].as_str().expect("a note");
        assert!(note.contains(word), "{word} is not in: {note}");
    };
    let roots_own = TestDir::new(RunAs::Me);
    let closed = format!(
        "store_uri = file://{}/cache?secret-key={}\n",
        roots_own.path().display(),
        cache.dir.join("secret").display()
    );
    problem(&closed, "may not write");
    problem(&cache.conf(".none"), "secret.none");
    problem("store_uri = file:///x?compression=lha\n", "lha");
    fs::write(
        cache.path().join("nix-cache-info"),
        "StoreDir: /elsewhere\n",
    )
    .expect("write");
    problem(&cache.conf(""), "/elsewhere");
}
