//! The formats and protocols against golden files and against a real Nix.
//!
//! Needs `nix-store`, `nix-daemon` and `nix-instantiate` on the PATH; every test has a store of
//! its own in a temporary directory and needs no privileges. With `UPDATE_GOLDEN=1` the golden
//! files are made again; what made them is in `tests/golden/README.md`.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::sync::{Arc, Mutex};

use hydrad::nix::hash::{hex_encode, sha256};
use hydrad::nix::nar::{self, Visitor};
use hydrad::nix::products::{self, MemberScan, OutputScan};
use hydrad::nix::store_path::{self, verify_output_paths};
use hydrad::nix::{
    Derivation, DerivationFacts, DrvKind, Error as NixError, StoreDir, ValidPathInfo,
};
use hydrad::wire::{
    BuildOptions, BuildResult, ClientSettings, Error, ResultStatus, ServeClient, WorkerClient,
};

fn golden(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/golden")
        .join(name)
}

fn updating() -> bool {
    std::env::var_os("UPDATE_GOLDEN").is_some_and(|value| value == "1")
}

/// Compares with a golden file, or writes it.
fn check_golden(name: &str, found: &[u8]) {
    let path = golden(name);
    if updating() {
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, found).unwrap();
        return;
    }
    let expected = fs::read(&path).unwrap();
    if let (Ok(found), Ok(expected)) = (std::str::from_utf8(found), std::str::from_utf8(&expected))
    {
        assert_eq!(found, expected, "{name}");
    }
    assert!(found == expected, "{name} differs");
}

/// A Nix store in a directory: `store` in it is the logical and physical store directory.
struct Store {
    root: PathBuf,
    dir: StoreDir,
    _temp: Option<tempfile::TempDir>,
}

impl Store {
    fn new() -> Store {
        let temp = tempfile::tempdir().unwrap();
        // Nix refuses a store below a symlink, which /tmp is on some systems.
        let root = temp.path().canonicalize().unwrap();
        Store::at(root, Some(temp))
    }

    fn at(root: PathBuf, temp: Option<tempfile::TempDir>) -> Store {
        for dir in ["etc", "store", "state", "log", "home"] {
            fs::create_dir_all(root.join(dir)).unwrap();
        }
        let settings = "build-users-group =\nsubstituters =\nsandbox = false\nmax-jobs = 2\n\
                        experimental-features = nix-command ca-derivations\nsystem = x86_64-linux\n";
        fs::write(root.join("etc/nix.conf"), settings).unwrap();
        let dir = StoreDir(root.join("store").to_str().unwrap().to_owned());
        Store {
            root,
            dir,
            _temp: temp,
        }
    }

    /// A program with nothing but this store in its environment.
    fn command(&self, program: &str) -> Command {
        let mut command = Command::new(program);
        let path = std::env::var_os("PATH").unwrap_or_default();
        command.env_clear().env("PATH", path);
        command.env("NIX_REMOTE", "local");
        for (name, dir) in [
            ("NIX_STORE_DIR", "store"),
            ("NIX_STATE_DIR", "state"),
            ("NIX_LOG_DIR", "log"),
            ("NIX_CONF_DIR", "etc"),
            ("HOME", "home"),
        ] {
            command.env(name, self.root.join(dir));
        }
        command
    }

    fn run(&self, program: &str, args: &[&str]) -> String {
        let output = self.command(program).args(args).output().unwrap();
        assert!(
            output.status.success(),
            "{program} {args:?}: {}",
            String::from_utf8_lossy(&output.stderr)
        );
        String::from_utf8(output.stdout).unwrap().trim().to_owned()
    }

    /// Instantiates an attribute of `session.nix`.
    fn drv(&self, attribute: &str) -> (String, Derivation) {
        let expression = golden("session.nix");
        let args = [expression.to_str().unwrap(), "-A", attribute];
        let path = self.run("nix-instantiate", &args);
        let drv = Derivation::parse(&fs::read(&path).unwrap()).unwrap();
        (path, drv)
    }

    fn start(&self, program: &str, args: &[&str]) -> Peer {
        let log = self.root.join(format!("stderr-{}", args.len()));
        let mut child = self
            .command(program)
            .args(args)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(fs::File::create(&log).unwrap())
            .spawn()
            .unwrap_or_else(|e| panic!("cannot start {program}: {e}"));
        Peer {
            ends: child.stdout.take().zip(child.stdin.take()),
            child,
            log,
        }
    }

    fn serve(&self) -> (Peer, Serve) {
        let mut peer = self.start("nix-store", &["--serve", "--write"]);
        let (reader, writer) = peer.ends.take().unwrap();
        (peer, ServeClient::handshake(reader, writer).unwrap())
    }

    fn worker(&self) -> (Peer, Worker) {
        let mut peer = self.start("nix-daemon", &["--stdio"]);
        let (reader, writer) = peer.ends.take().unwrap();
        (peer, WorkerClient::handshake(reader, writer).unwrap())
    }

    /// A file that is in no store yet: its path info and its NAR.
    fn loose_file(&self, name: &str, contents: &str) -> (ValidPathInfo, Vec<u8>) {
        let file = self.root.join(name);
        fs::write(&file, contents).unwrap();
        let nar = nar_of(&file);
        let nar_hash = sha256(&nar);
        let info = ValidPathInfo {
            path: store_path::source_path(&self.dir, name, &nar_hash, &[]),
            nar_hash,
            nar_size: nar.len() as u64,
            ..ValidPathInfo::default()
        };
        (info, nar)
    }
}

type Serve = ServeClient<ChildStdout, ChildStdin>;
type Worker = WorkerClient<ChildStdout, ChildStdin>;

/// A Nix process at the other end of two pipes. Bound before its client, so that it is dropped,
/// and waited for, after it.
struct Peer {
    child: Child,
    ends: Option<(ChildStdout, ChildStdin)>,
    log: PathBuf,
}

impl Peer {
    /// What it has printed on its standard error, once it is gone.
    fn wait_for_log(mut self) -> String {
        self.child.wait().unwrap();
        String::from_utf8_lossy(&fs::read(&self.log).unwrap()).into_owned()
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        // Its input ends with the client, so it ends by itself unless a test has failed.
        if std::thread::panicking() {
            let _ = self.child.kill();
        }
        let _ = self.child.wait();
    }
}

fn nar_of(path: &Path) -> Vec<u8> {
    let mut bytes = Vec::new();
    nar::dump_path(path, &mut bytes).unwrap();
    bytes
}

fn output_paths(drv: &Derivation) -> Vec<String> {
    let paths = drv.outputs.values().map(|output| output.path.clone());
    paths.collect::<Option<_>>().unwrap()
}

fn build<R: Read, W: Write>(
    client: &mut ServeClient<R, W>,
    (path, drv): &(String, Derivation),
    inputs: &[String],
    options: &BuildOptions,
) -> BuildResult {
    client
        .build_derivation_start(path, drv, inputs, options)
        .unwrap();
    client.build_derivation_finish().unwrap()
}

// ---- golden derivations ------------------------------------------------------------------

fn golden_derivations() -> BTreeMap<String, Vec<u8>> {
    let mut texts = BTreeMap::new();
    for entry in fs::read_dir(golden("drv")).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_str().unwrap().to_owned();
        texts.insert(format!("/nix/store/{name}"), fs::read(path).unwrap());
    }
    assert!(texts.len() >= 14);
    texts
}

#[test]
fn derivations_are_read_and_written_alike() {
    let mut found = String::new();
    for (path, text) in golden_derivations() {
        let drv = Derivation::parse(&text).unwrap();
        assert_eq!(drv.to_aterm(), text, "{path}");
        let facts = DerivationFacts::scan(&text).unwrap();
        assert_eq!(Some(facts.kind), drv.kind());
        writeln!(found, "{path}\n{facts:#?}\n").unwrap();
    }
    check_golden("drv.txt", found.as_bytes());
}

#[test]
fn output_paths_are_recomputed() {
    let store_dir = StoreDir::default();
    let texts = golden_derivations();
    let mut verified = 0;
    for (path, text) in &texts {
        let mut drv = Derivation::parse(text).unwrap();
        let mut load = |path: &str| Derivation::parse(&texts[path]);
        // The .drv is a text whose references are its inputs.
        let mut references: Vec<String> = drv.input_drvs.keys().cloned().collect();
        references.extend(drv.input_srcs.iter().cloned());
        let name = store_path::name_part(path);
        assert_eq!(
            store_path::text_path(&store_dir, name, &sha256(text), &references),
            *path
        );
        let known = drv.kind().unwrap().has_known_output_paths();
        let result = verify_output_paths(&store_dir, path, &drv, &mut load);
        assert_eq!(result.is_ok(), known, "{path}: {result:?}");
        if !known {
            continue;
        }
        verified += 1;
        // Another builder, another path; but what a fixed output is does not depend on it.
        drv.builder = b"/bin/other".to_vec();
        let result = verify_output_paths(&store_dir, path, &drv, &mut load);
        match drv.kind() {
            Some(DrvKind::Fixed) => result.unwrap(),
            _ => assert!(matches!(result, Err(NixError::OutputPath { .. }))),
        }
    }
    assert!(verified >= 11, "{verified}");
}

#[test]
fn a_derivation_that_is_its_own_input() {
    let texts = golden_derivations();
    let (path, text) = texts
        .iter()
        .find(|(path, _)| path.ends_with("-multi-1.0.drv"))
        .unwrap();
    let drv = Derivation::parse(text).unwrap();
    // Whatever is loaded has itself among its inputs.
    let mut load = |input: &str| {
        let mut drv = drv.clone();
        drv.input_drvs.insert(input.to_owned(), vec![]);
        Ok(drv)
    };
    let error = verify_output_paths(&StoreDir::default(), path, &drv, &mut load).unwrap_err();
    assert!(error.to_string().contains("its own input"), "{error}");
}

// ---- golden NAR --------------------------------------------------------------------------

/// The tree of `tree.nar`.
fn plant(root: &Path) {
    use std::os::unix::fs::PermissionsExt;
    for dir in ["a", "empty", "Z"] {
        fs::create_dir_all(root.join(dir)).unwrap();
    }
    for (name, contents, mode) in [
        ("a/exact", "12345678", 0o644),
        ("a-file", "not after a/", 0o600),
        ("a.file", "", 0o644),
        ("tool", "#!/bin/sh\n", 0o755),
        ("group-x", "only the owner counts", 0o654),
        ("Z/ü", "bytes", 0o444),
    ] {
        let path = root.join(name);
        fs::write(&path, contents).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
    }
    std::os::unix::fs::symlink("../a//exact", root.join("a/link")).unwrap();
    std::os::unix::fs::symlink("/nowhere", root.join("dangling")).unwrap();
}

#[derive(Default)]
struct Listing(String);

impl Visitor for Listing {
    fn directory(&mut self, path: &[u8]) -> Result<(), NixError> {
        writeln!(self.0, "d {}", path.escape_ascii()).unwrap();
        Ok(())
    }
    fn symlink(&mut self, path: &[u8], target: &[u8]) -> Result<(), NixError> {
        writeln!(
            self.0,
            "l {} -> {}",
            path.escape_ascii(),
            target.escape_ascii()
        )
        .unwrap();
        Ok(())
    }
    fn file(&mut self, path: &[u8], size: u64, executable: bool) -> Result<(), NixError> {
        let kind = if executable { 'x' } else { 'f' };
        write!(self.0, "{kind} {} {size} ", path.escape_ascii()).unwrap();
        Ok(())
    }
    fn contents(&mut self, chunk: &[u8]) -> Result<(), NixError> {
        write!(self.0, "{}", chunk.escape_ascii()).unwrap();
        Ok(())
    }
    fn file_end(&mut self) -> Result<(), NixError> {
        self.0.push('\n');
        Ok(())
    }
}

#[test]
fn a_tree_and_its_nar() {
    let temp = tempfile::tempdir().unwrap();
    let tree = temp.path().join("tree");
    plant(&tree);
    if updating() {
        let store = Store::new();
        let dump = store
            .command("nix-store")
            .arg("--dump")
            .arg(&tree)
            .output()
            .unwrap();
        fs::write(golden("tree.nar"), dump.stdout).unwrap();
    }
    let nar = fs::read(golden("tree.nar")).unwrap();
    assert_eq!(nar_of(&tree), nar);
    let mut listing = Listing::default();
    let digest = nar::parse(nar.as_slice(), &mut listing).unwrap();
    assert_eq!(
        (digest.sha256, digest.size),
        (sha256(&nar), nar.len() as u64)
    );
    check_golden("tree.txt", listing.0.as_bytes());
    let copy = temp.path().join("copy");
    assert_eq!(nar::restore(nar.as_slice(), &copy).unwrap(), digest);
    assert_eq!(nar_of(&copy), nar);
}

// ---- recorded sessions -------------------------------------------------------------------

/// A session's name, and its derivations from golden files unless they are being made.
struct Session {
    name: &'static str,
    store_dir: StoreDir,
    live: Option<Store>,
}

impl Session {
    fn new(name: &'static str) -> Session {
        // The same for every recording, since store paths are all over it.
        let root = format!("/tmp/hydrad-golden-{name}");
        let store_dir = StoreDir(format!("{root}/store"));
        let live = updating().then(|| {
            let _ = fs::remove_dir_all(&root);
            fs::create_dir_all(golden(name)).unwrap();
            Store::at(PathBuf::from(root), None)
        });
        Session {
            name,
            store_dir,
            live,
        }
    }

    fn golden(&self, file: &str) -> PathBuf {
        golden(&format!("{}/{file}", self.name))
    }

    fn drv(&self, attribute: &str) -> (String, Derivation) {
        let (path_file, drv_file) = (
            self.golden(&format!("{attribute}.path")),
            self.golden(&format!("{attribute}.drv")),
        );
        if let Some(store) = &self.live {
            let (path, drv) = store.drv(attribute);
            fs::copy(&path, &drv_file).unwrap();
            let _ = fs::set_permissions(
                &drv_file,
                std::os::unix::fs::PermissionsExt::from_mode(0o644),
            );
            fs::write(path_file, path.as_bytes()).unwrap();
            return (path, drv);
        }
        let text = fs::read(drv_file).unwrap();
        let path = fs::read_to_string(path_file).unwrap();
        (path, Derivation::parse(&text).unwrap())
    }

    fn loose_file(&self) -> (ValidPathInfo, Vec<u8>) {
        let temp = tempfile::tempdir().unwrap();
        let store = Store {
            root: temp.path().to_owned(),
            dir: self.store_dir.clone(),
            _temp: None,
        };
        store.loose_file("loose", "added by hand\n")
    }

    /// Talks to the real program and records, or to the recording.
    fn run(
        self,
        program: &str,
        args: &[&str],
        script: impl FnOnce(&Session, Box<dyn Read>, Box<dyn Write>) -> String,
    ) {
        let name = self.name;
        let sent = Arc::new(Mutex::new(Vec::new()));
        let tee = |inner: Box<dyn Write>| {
            Box::new(Tee {
                inner,
                log: Arc::clone(&sent),
            })
        };
        let transcript = match &self.live {
            Some(store) => {
                let mut peer = store.start(program, args);
                let (reader, writer) = peer.ends.take().unwrap();
                let received = Arc::new(Mutex::new(Vec::new()));
                let reader = Tee {
                    inner: reader,
                    log: Arc::clone(&received),
                };
                let transcript = script(&self, Box::new(reader), tee(Box::new(writer)));
                let received = received.lock().unwrap();
                fs::write(self.golden("received"), &*received).unwrap();
                transcript
            }
            None => {
                let received = fs::read(self.golden("received")).unwrap();
                let reader = Box::new(io::Cursor::new(received));
                script(&self, reader, tee(Box::new(io::sink())))
            }
        };
        check_golden(&format!("{name}/sent"), &sent.lock().unwrap());
        check_golden(&format!("{name}/transcript.txt"), transcript.as_bytes());
    }
}

struct Tee<T> {
    inner: T,
    log: Arc<Mutex<Vec<u8>>>,
}

impl<T: Read> Read for Tee<T> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let n = self.inner.read(buf)?;
        self.log.lock().unwrap().extend_from_slice(&buf[..n]);
        Ok(n)
    }
}

impl<T: Write> Write for Tee<T> {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        self.log.lock().unwrap().extend_from_slice(buf);
        self.inner.write_all(buf)?;
        Ok(buf.len())
    }
    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }
}

/// A result without the times, which differ from recording to recording.
fn timeless(mut result: BuildResult) -> BuildResult {
    result.start = u64::from(result.start > 0);
    result.stop = u64::from(result.stop > 0);
    result
}

#[test]
fn a_recorded_serve_session() {
    let session = Session::new("serve");
    session.run("nix-store", &["--serve", "--write"], |session, r, w| {
        let mut out = String::new();
        let (dep, multi, fails) = (
            session.drv("dep"),
            session.drv("multi"),
            session.drv("fails"),
        );
        let (dep_out, outs) = (output_paths(&dep.1), output_paths(&multi.1));
        let options = BuildOptions::default();
        let mut c = ServeClient::handshake(r, w).unwrap();
        writeln!(out, "version {:#x}", c.server_version()).unwrap();
        writeln!(
            out,
            "valid {:?}",
            c.query_valid_paths(&outs, true, false).unwrap()
        )
        .unwrap();
        let early = build(&mut c, &multi, &dep_out, &options);
        writeln!(out, "without its input {:#?}", timeless(early)).unwrap();
        build(&mut c, &dep, &[], &options);
        let result = build(&mut c, &multi, &dep_out, &options);
        writeln!(out, "built {:#?}", timeless(result)).unwrap();
        let again = build(&mut c, &multi, &dep_out, &options);
        writeln!(out, "again {:#?}", timeless(again)).unwrap();
        writeln!(out, "infos {:#?}", c.query_path_infos(&outs).unwrap()).unwrap();
        let mut listing = Listing::default();
        let dump = c.dump_store_path(&outs[1], &mut listing).unwrap();
        writeln!(out, "dump {:?}\n{}", dump.finish().unwrap(), listing.0).unwrap();
        writeln!(out, "closure {:#?}", c.query_closure(&outs, false).unwrap()).unwrap();
        writeln!(
            out,
            "failed {:#?}",
            timeless(build(&mut c, &fails, &[], &options))
        )
        .unwrap();
        let (info, nar) = session.loose_file();
        c.add_to_store_nar(&info, &mut nar.as_slice()).unwrap();
        writeln!(
            out,
            "added {:#?}",
            c.query_path_infos(&[&info.path]).unwrap()
        )
        .unwrap();
        out
    });
}

#[test]
fn a_recorded_worker_session() {
    let session = Session::new("worker");
    session.run("nix-daemon", &["--stdio"], |session, r, w| {
        let mut out = String::new();
        let (multi, fails) = (session.drv("multi"), session.drv("fails"));
        let outs = output_paths(&multi.1);
        let mut c = WorkerClient::handshake(r, w).unwrap();
        writeln!(
            out,
            "version {:#x} {:?}",
            c.server_version(),
            c.nix_version()
        )
        .unwrap();
        let log = Arc::new(Mutex::new(Vec::new()));
        let sink = Arc::clone(&log);
        c.set_log(Some(Box::new(move |line| {
            sink.lock()
                .unwrap()
                .extend_from_slice(&[line, b"\n"].concat())
        })));
        c.set_options(&ClientSettings {
            overrides: vec![("max-log-size".to_owned(), "100000".to_owned())],
            use_substitutes: false,
            ..ClientSettings::default()
        })
        .unwrap();
        writeln!(out, "is valid {}", c.is_valid_path(&outs[0]).unwrap()).unwrap();
        writeln!(out, "info {:?}", c.query_path_info(&outs[0]).unwrap()).unwrap();
        c.add_temp_root(&outs[0]).unwrap();
        let targets = [format!("{}!*", multi.0), format!("{}!*", fails.0)];
        writeln!(out, "missing {:#?}", c.query_missing(&targets).unwrap()).unwrap();
        writeln!(
            out,
            "outputs {:#?}",
            c.query_derivation_output_map(&multi.0).unwrap()
        )
        .unwrap();
        for target in &targets {
            let results = c.build_paths_with_results(&[target]).unwrap();
            for (target, result) in results {
                writeln!(out, "built {target} {:#?}", timeless(result)).unwrap();
            }
        }
        c.build_paths(&targets[..1]).unwrap();
        writeln!(
            out,
            "build error {}",
            c.build_paths(&targets[1..]).unwrap_err()
        )
        .unwrap();
        writeln!(
            out,
            "valid {:#?}",
            c.query_valid_paths(&outs, false).unwrap()
        )
        .unwrap();
        let mut info = c.query_path_info(&outs[1]).unwrap().unwrap();
        info.registration_time = u64::from(info.registration_time > 0);
        writeln!(out, "info {info:#?}").unwrap();
        let digest = c.nar_from_path(&outs[1], ()).unwrap().finish().unwrap();
        writeln!(out, "nar {digest:?}").unwrap();
        let (mut info, nar) = session.loose_file();
        info.nar_hash[0] ^= 1;
        let error = c
            .add_to_store_nar(&info, false, true, &mut nar.as_slice())
            .unwrap_err();
        writeln!(out, "bad NAR {error}, usable {}", c.usable()).unwrap();
        info.nar_hash[0] ^= 1;
        c.add_to_store_nar(&info, false, true, &mut nar.as_slice())
            .unwrap();
        writeln!(out, "added {:?}", c.is_valid_path(&info.path).unwrap()).unwrap();
        writeln!(
            out,
            "log\n{}",
            String::from_utf8_lossy(&log.lock().unwrap())
        )
        .unwrap();
        let error = c.is_valid_path("/etc/passwd").unwrap_err();
        writeln!(out, "bad path {error}, usable {}", c.usable()).unwrap();
        out
    });
}

// ---- a real Nix --------------------------------------------------------------------------

#[test]
fn what_is_built_moves_to_another_store() {
    let store = Store::new();
    let (dep, multi) = (store.drv("dep"), store.drv("multi"));
    let (dep_out, outs) = (output_paths(&dep.1), output_paths(&multi.1));
    let mut load = |path: &str| Derivation::parse(&fs::read(path).unwrap());
    verify_output_paths(&store.dir, &multi.0, &multi.1, &mut load).unwrap();

    let (peer, mut builder) = store.serve();
    let options = BuildOptions::default();
    assert_eq!(
        build(&mut builder, &dep, &[], &options).status,
        ResultStatus::Built
    );
    let result = build(&mut builder, &multi, &dep_out, &options);
    assert_eq!(
        (result.status, result.times_built),
        (ResultStatus::Built, 1)
    );
    assert!(result.stop >= result.start && result.start > 1_600_000_000);
    let named: Vec<_> = multi.1.outputs.keys().cloned().zip(&outs).collect();
    let built: Vec<_> = result
        .built_outputs
        .iter()
        .map(|(name, base)| (name.clone(), store.dir.join(base)))
        .collect();
    assert!(built.iter().map(|(n, p)| (n.clone(), p)).eq(named));

    // The other store has the same logical directory and none of the files.
    let other = tempfile::tempdir().unwrap();
    let root = other.path().canonicalize().unwrap();
    let uri = format!(
        "local?root={}&store={}&state={}/state",
        root.display(),
        store.dir.as_str(),
        root.display()
    );
    let mut receiver_peer = store.start("nix-store", &["--serve", "--write", "--store", &uri]);
    let (reader, writer) = receiver_peer.ends.take().unwrap();
    let mut receiver = ServeClient::handshake(reader, writer).unwrap();
    let all: Vec<String> = dep_out.iter().chain(&outs).cloned().collect();
    let none: [String; 0] = [];
    assert_eq!(receiver.query_valid_paths(&all, true, false).unwrap(), none);

    let infos = builder.query_path_infos(&all).unwrap();
    assert_eq!(infos.len(), 3);
    let mut scans = BTreeMap::new();
    // References first: the dependency, then what refers to it, then what refers to that.
    for path in [&dep_out[0], &outs[1], &outs[0]] {
        let info: ValidPathInfo = infos
            .iter()
            .find(|i| i.path == *path)
            .unwrap()
            .clone()
            .into();
        let mut scan = MemberScan::new();
        let mut dump = builder.dump_store_path(path, &mut scan).unwrap();
        receiver.add_to_store_nar(&info, &mut dump).unwrap();
        let digest = dump.finish().unwrap();
        assert_eq!((digest.sha256, digest.size), (info.nar_hash, info.nar_size));
        scans.insert(path.clone(), (scan, info));
    }
    let mut expected = all.clone();
    expected.sort();
    let valid = receiver.query_valid_paths(&all, true, false).unwrap();
    assert_eq!(valid, expected);
    assert_eq!(receiver.query_path_infos(&all).unwrap(), infos);
    assert_eq!(
        receiver.query_closure(&[&outs[0]], false).unwrap(),
        expected
    );
    // Nix always calls it so below `root`.
    let physical = |path: &str| root.join("nix/store").join(store_path::base_name(path));
    let moved = physical(&outs[1]);
    assert_eq!(nar_of(&moved), nar_of(Path::new(&outs[1])));

    // What streamed by tells the products, and so does the disk of the other store.
    let output = |scan: MemberScan, i: usize, name: &str| OutputScan {
        name: name.to_owned(),
        path: outs[i].clone(),
        nar_size: scans[&outs[i]].1.nar_size,
        scan,
    };
    let streamed = products::build_output(
        &[
            output(scans[&outs[1]].0.clone(), 1, "out"),
            output(scans[&outs[0]].0.clone(), 0, "dev"),
        ],
        1,
        &store.dir,
    );
    let tool = format!("{}/bin/tool", outs[1]);
    assert_eq!(streamed.products.len(), 1);
    assert_eq!(streamed.products[0].path, tool);
    let tool_hash = hex_encode(&sha256(b"#!/bin/sh\n"));
    assert_eq!(streamed.products[0].sha256, Some(tool_hash));
    let dev = physical(&outs[0]);
    let on_disk = products::scan_paths(
        &store.dir,
        &[(&outs[1], moved.as_path()), (&outs[0], dev.as_path())],
    );
    let mut on_disk = on_disk.unwrap().into_iter();
    let from_disk = products::build_output(
        &[
            output(on_disk.next().unwrap(), 1, "out"),
            output(on_disk.next().unwrap(), 0, "dev"),
        ],
        1,
        &store.dir,
    );
    assert_eq!(from_disk, streamed);

    drop(builder);
    let log = peer.wait_for_log();
    assert!(log.contains("building multi"), "{log}");
}

#[test]
fn failures_leave_the_connection_usable() {
    let store = Store::new();
    let (_peer, mut client) = store.serve();
    let options = BuildOptions::default();
    let fails = build(&mut client, &store.drv("fails"), &[], &options);
    assert_eq!(fails.status, ResultStatus::PermanentFailure);
    assert!(fails.message.contains("exit code 3"), "{}", fails.message);
    assert!(fails.built_outputs.is_empty());

    let slow = store.drv("slow");
    let short = BuildOptions {
        timeout: 1,
        ..options
    };
    let result = build(&mut client, &slow, &[], &short);
    assert_eq!((result.status, result.stop), (ResultStatus::TimedOut, 0));
    assert!(result.start > 0);
    let quiet = BuildOptions {
        max_silent: 1,
        ..options
    };
    let result = build(&mut client, &slow, &[], &quiet);
    assert_eq!(result.status, ResultStatus::TimedOut);
    assert!(!result.message.contains('\x1b'), "{:?}", result.message);
    let brief = BuildOptions {
        max_log_size: 10_000,
        ..options
    };
    let result = build(&mut client, &store.drv("chatty"), &[], &brief);
    assert_eq!(result.status, ResultStatus::LogLimitExceeded);

    let multi = store.drv("multi");
    let missing = [store.dir.join("0a000000000000000000000000000000-missing")];
    let result = build(&mut client, &multi, &missing, &options);
    assert_eq!(result.status, ResultStatus::MiscFailure);
    let result = build(&mut client, &store.drv("elsewhere"), &[], &options);
    assert_eq!(result.status, ResultStatus::MiscFailure);
    assert!(result.message.contains("vax-vms"), "{}", result.message);

    assert!(client.usable());
    let result = build(&mut client, &store.drv("dep"), &[], &options);
    assert_eq!(result.status, ResultStatus::Built);
}

#[test]
fn an_output_whose_path_comes_from_its_contents() {
    let store = Store::new();
    let (_peer, mut client) = store.serve();
    let floating = store.drv("floating");
    assert_eq!(floating.1.kind(), Some(DrvKind::FloatingCa));
    let result = build(&mut client, &floating, &[], &BuildOptions::default());
    assert_eq!(result.status, ResultStatus::Built);
    let (name, base) = &result.built_outputs[0];
    assert_eq!(name, "out");
    let file = store.root.join("copy");
    fs::write(&file, "floating\n").unwrap();
    let nar_hash = sha256(&nar_of(&file));
    let path = store_path::source_path(&store.dir, "floating", &nar_hash, &[]);
    assert_eq!(store.dir.join(base), path);
    let infos = client.query_path_infos(&[&path]).unwrap();
    assert_eq!(infos[0].nar_hash, nar_hash);
    let nix32 = hydrad::nix::hash::nix32_encode(&nar_hash);
    assert_eq!(infos[0].ca, Some(format!("fixed:r:sha256:{nix32}")));
}

#[test]
fn what_a_serve_connection_does_not_survive() {
    let store = Store::new();
    let missing = store.dir.join("0a000000000000000000000000000000-missing");
    let (peer, mut client) = store.serve();
    let dump = client.dump_store_path(&missing, ()).unwrap();
    assert!(dump.finish().unwrap_err().is_eof());
    assert!(!client.usable());
    let log = peer.wait_for_log();
    assert!(log.contains("is not valid"), "{log}");

    // A NAR that is not what was announced.
    let (peer, mut client) = store.serve();
    let (mut info, nar) = store.loose_file("loose", "contents");
    info.nar_hash[0] ^= 1;
    let error = client
        .add_to_store_nar(&info, &mut nar.as_slice())
        .unwrap_err();
    assert!(matches!(error, Error::Source(_)), "{error}");
    assert!(!client.usable());
    drop(client);
    peer.wait_for_log();
    let (_peer, mut client) = store.serve();
    let none: [String; 0] = [];
    let paths = [info.path.clone()];
    assert_eq!(
        client.query_valid_paths(&paths, false, false).unwrap(),
        none
    );
    info.nar_hash[0] ^= 1;
    client.add_to_store_nar(&info, &mut nar.as_slice()).unwrap();
    assert_eq!(
        client.query_valid_paths(&paths, false, false).unwrap(),
        paths
    );

    // No --write, no building.
    let mut peer = store.start("nix-store", &["--serve"]);
    let (reader, writer) = peer.ends.take().unwrap();
    let mut client = ServeClient::handshake(reader, writer).unwrap();
    let (path, drv) = store.drv("dep");
    let none: [&str; 0] = [];
    client
        .build_derivation_start(&path, &drv, &none, &BuildOptions::default())
        .unwrap();
    assert!(client.build_derivation_finish().unwrap_err().is_eof());
    let log = peer.wait_for_log();
    assert!(log.contains("not allowed"), "{log}");
}

#[test]
fn programs_that_are_not_nix() {
    let store = Store::new();
    let handshake = |script: &str| {
        let mut peer = store.start("sh", &["-c", script]);
        let (reader, writer) = peer.ends.take().unwrap();
        // Its own end: the program has to see the end of its input.
        let serve = ServeClient::handshake(reader, writer).err().unwrap();
        drop(peer);
        serve
    };
    let error = handshake("echo Welcome to this machine; cat > /dev/null").to_string();
    assert!(
        error.contains("got 'Welcome to this machine\\n'"),
        "{error}"
    );
    let error = handshake("head -c 16 > /dev/null; echo nope").to_string();
    assert!(error.contains("got 'nope\\n'"), "{error}");
    assert!(handshake("head -c 16 > /dev/null").is_eof());
}

#[test]
fn a_daemon_builds_and_takes_paths() {
    let store = Store::new();
    let (dep, multi) = (store.drv("dep"), store.drv("multi"));
    let outs = output_paths(&multi.1);
    let (peer, mut client) = store.worker();
    let mut settings = ClientSettings {
        use_substitutes: false,
        ..ClientSettings::default()
    };
    client.set_options(&settings).unwrap();
    let lines = Arc::new(Mutex::new(String::new()));
    let sink = Arc::clone(&lines);
    client.set_log(Some(Box::new(move |line| {
        sink.lock()
            .unwrap()
            .push_str(&String::from_utf8_lossy(line));
    })));
    let target = format!("{}!*", multi.0);
    let missing = client.query_missing(&[&target]).unwrap();
    let mut expected = vec![dep.0.clone(), multi.0.clone()];
    expected.sort();
    assert_eq!(missing.will_build, expected);
    let results = client.build_paths_with_results(&[&target]).unwrap();
    assert_eq!(results[0].1.status, ResultStatus::Built);
    assert_eq!(results[0].1.built_outputs.len(), 2);
    assert!(lines.lock().unwrap().contains("building multi"));
    let outputs = client.query_derivation_output_map(&multi.0).unwrap();
    let expected: BTreeMap<_, _> = multi
        .1
        .outputs
        .iter()
        .map(|(name, output)| (name.clone(), output.path.clone()))
        .collect();
    assert_eq!(outputs, expected);

    // The daemon and the other protocol say the same.
    let (serve_peer, mut serve) = store.serve();
    let infos = serve.query_path_infos(&outs).unwrap();
    for info in infos {
        let mut same = client.query_path_info(&info.path).unwrap().unwrap();
        assert!(same.ultimate && same.registration_time > 0);
        (same.ultimate, same.registration_time) = (false, 0);
        assert_eq!(ValidPathInfo::from(info), same);
    }

    // Out of the store and in again.
    let dev = client.query_path_info(&outs[0]).unwrap().unwrap();
    let mut nar = Vec::new();
    let mut dump = client.nar_from_path(&outs[0], ()).unwrap();
    dump.read_to_end(&mut nar).unwrap();
    assert_eq!(dump.finish().unwrap().sha256, dev.nar_hash);
    // What a connection has built stays alive as long as the connection.
    drop((client, serve));
    drop((peer, serve_peer));
    store.run("nix-store", &["--delete", &outs[0]]);
    let (_peer, mut client) = store.worker();
    client.set_options(&settings).unwrap();
    assert!(!client.is_valid_path(&outs[0]).unwrap());
    client.add_temp_root(&outs[0]).unwrap();
    client
        .add_to_store_nar(&dev, false, true, &mut nar.as_slice())
        .unwrap();
    assert_eq!(
        client.query_valid_paths(&outs, false).unwrap().len(),
        outs.len()
    );
    assert_eq!(nar_of(Path::new(&outs[0])), nar);
    client.ensure_path(&outs[0]).unwrap();

    // A limit through the options.
    settings.overrides = vec![("timeout".to_owned(), "1".to_owned())];
    client.set_options(&settings).unwrap();
    let slow = format!("{}!out", store.drv("slow").0);
    let results = client.build_paths_with_results(&[slow]).unwrap();
    assert_eq!(results[0].1.status, ResultStatus::TimedOut);
}

#[test]
fn what_a_daemon_refuses() {
    let store = Store::new();
    let (_peer, mut client) = store.worker();
    let (info, nar) = store.loose_file("loose", "contents");
    let remote = |result: Result<(), Error>, why: &str| match result {
        Err(Error::Remote(message)) => assert!(message.contains(why), "{message}"),
        other => panic!("{other:?}"),
    };
    // Nothing of a bad NAR stays, and the connection does.
    let mut wrong = info.clone();
    wrong.nar_hash[0] ^= 1;
    for (info, nar) in [
        (&wrong, &nar[..]),
        (&info, &nar[..nar.len() - 8]),
        (&info, &nar[8..]),
    ] {
        let error = client
            .add_to_store_nar(info, false, true, &mut &nar[..])
            .unwrap_err();
        assert!(matches!(error, Error::Source(_)), "{error}");
        assert!(client.usable());
        assert!(!client.is_valid_path(&info.path).unwrap());
    }
    let junk = vec![b'x'; 200_000];
    let bad_nar = ValidPathInfo {
        nar_hash: sha256(&junk),
        nar_size: junk.len() as u64,
        ..info.clone()
    };
    let result = client.add_to_store_nar(&bad_nar, false, true, &mut junk.as_slice());
    assert!(matches!(result, Err(Error::Remote(_))), "{result:?}");
    assert!(client.usable());
    let mut dangling = info.clone();
    dangling.references = vec![store.dir.join("0a000000000000000000000000000000-missing")];
    let result = client.add_to_store_nar(&dangling, false, true, &mut nar.as_slice());
    remote(result, "is not valid");
    assert!(client.usable());
    client
        .add_to_store_nar(&info, false, true, &mut nar.as_slice())
        .unwrap();

    let missing = &dangling.references[0];
    remote(client.ensure_path(missing), "");
    assert!(client.usable());
    let fails = format!("{}!out", store.drv("fails").0);
    remote(client.build_paths(&[&fails]), "exit code 3");
    assert!(client.usable());

    // Neither an error that comes late nor an argument that it cannot even read lets the
    // connection live.
    let (_peer, mut other) = store.worker();
    remote(other.nar_from_path(missing, ()).map(|_| ()), missing);
    assert!(!other.usable());
    remote(
        client.is_valid_path("/etc/passwd").map(|_| ()),
        "/etc/passwd",
    );
    assert!(!client.usable());
    let result = client.is_valid_path(&info.path);
    assert!(matches!(result, Err(Error::Unusable)));
}
