//! Nix stores in temporary directories, and a daemon for one of them.

use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};

use super::process::{has_program, output_of, Running};
use super::{RunAs, TestDir};

const NIX_CONF: &str = "\
# As root, builds would otherwise run as nixbldN and could not enter a private directory.
build-users-group =
substituters =
sandbox = false
experimental-features = nix-command
";

/// The same where content-addressed derivations can be built.
const CONTENT_ADDRESSED: &str = "\
build-users-group =
substituters =
sandbox = false
experimental-features = nix-command ca-derivations
";

/// A relocated store: its own logical directory, so nothing is shared with /nix/store or another test.
pub struct NixStore {
    dir: TestDir,
    owner: RunAs,
    next_file: AtomicU32,
}

impl NixStore {
    pub fn new() -> NixStore {
        NixStore::owned_by(RunAs::Me)
    }

    /// A store whose files belong to `owner`; its commands run with that user's rights.
    pub fn owned_by(owner: RunAs) -> NixStore {
        assert!(
            has_program("nix-store"),
            "nix-store is not installed: run `make deps`"
        );
        let dir = TestDir::new(owner);
        lay_out(&dir, owner);
        NixStore {
            dir,
            owner,
            next_file: AtomicU32::new(0),
        }
    }

    /// Let builds here have these system features.
    pub fn with_features(self, features: &[&str]) -> NixStore {
        let conf = format!("{NIX_CONF}system-features = {}\n", features.join(" "));
        std::fs::write(self.dir.join("conf/nix.conf"), conf).expect("write nix.conf");
        self
    }

    /// Let this store know content-addressed derivations.
    pub fn content_addressed(self) -> NixStore {
        std::fs::write(self.dir.join("conf/nix.conf"), CONTENT_ADDRESSED).expect("write nix.conf");
        self
    }

    /// The logical (and here also physical) store directory.
    pub fn store_dir(&self) -> PathBuf {
        self.dir.join("store")
    }

    pub fn owner(&self) -> RunAs {
        self.owner
    }

    pub fn dir(&self) -> &TestDir {
        &self.dir
    }

    /// What makes any Nix program use this store.
    pub fn env(&self) -> Vec<(String, String)> {
        env_of(&self.dir, &self.store_dir())
    }

    /// A command that uses this store, with its owner's rights.
    pub fn command(&self, program: &str) -> Command {
        let mut command = self.owner.command(program);
        command
            .envs(self.env())
            .env("HOME", self.dir.join("home"))
            .current_dir(self.dir.path());
        command
    }

    /// The derivations an expression evaluates to, in order.
    pub fn instantiate(&self, expression: &str) -> Vec<String> {
        let file = self.dir.join(format!(
            "expr-{}.nix",
            self.next_file.fetch_add(1, Ordering::Relaxed)
        ));
        std::fs::write(&file, expression).expect("write a Nix expression");
        self.instantiate_file(&file, &[])
    }

    /// The derivations of a file, with extra arguments of nix-instantiate.
    pub fn instantiate_file(&self, file: &Path, args: &[&str]) -> Vec<String> {
        let drvs = output_of(self.command("nix-instantiate").arg(file).args(args));
        drvs.lines()
            .map(|line| line.split('!').next().unwrap_or(line).to_string())
            .collect()
    }

    /// `nix-store ARGS`; its standard output.
    pub fn store(&self, args: &[&str]) -> String {
        output_of(self.command("nix-store").args(args))
    }

    /// Build a derivation here; its outputs.
    pub fn build(&self, drv: &str) -> Vec<String> {
        self.store(&["-r", drv]).lines().map(String::from).collect()
    }

    /// A key to sign with, named `test-1`: the files `secret` and `public` in this folder.
    pub fn signing_key(&self, dir: &TestDir) {
        let mut keygen = self.command("nix-store");
        keygen.args(["--generate-binary-cache-key", "test-1", "secret", "public"]);
        output_of(keygen.current_dir(dir.path()));
    }

    pub fn outputs(&self, drv: &str) -> Vec<String> {
        self.store(&["-q", "--outputs", drv])
            .lines()
            .map(String::from)
            .collect()
    }

    pub fn is_valid(&self, path: &str) -> bool {
        let mut command = self.command("nix-store");
        command
            .args(["--check-validity", path])
            .output()
            .expect("start nix-store")
            .status
            .success()
    }

    /// Another store with the same logical directory, as a build machine has one.
    pub fn second(&self) -> SecondStore {
        SecondStore::new(self.store_dir(), self.owner)
    }
}

/// A store with its own files and database under the logical directory of another one. Its programs see its files there,
/// through a bind mount in a mount namespace of their own. Needs namespaces (root, or unprivileged user namespaces).
pub struct SecondStore {
    dir: TestDir,
    logical: PathBuf,
    owner: RunAs,
}

impl SecondStore {
    pub fn new(logical: PathBuf, owner: RunAs) -> SecondStore {
        let dir = TestDir::new(owner);
        lay_out(&dir, owner);
        SecondStore {
            dir,
            logical,
            owner,
        }
    }

    /// Let this store know content-addressed derivations.
    pub fn content_addressed(&self) {
        std::fs::write(self.dir.join("conf/nix.conf"), CONTENT_ADDRESSED).expect("write nix.conf");
    }

    /// Where its files really are.
    pub fn physical_dir(&self) -> PathBuf {
        self.dir.join("store")
    }

    /// The environment its programs need *inside* the mount namespace.
    pub fn env(&self) -> Vec<(String, String)> {
        env_of(&self.dir, &self.logical)
    }

    /// The words that run a command in it; put the command's own words behind them.
    pub fn prefix(&self) -> Vec<String> {
        let root = super::user::is_root() && self.owner == RunAs::Me;
        let mut words = vec![
            "unshare".to_string(),
            if root { "-m" } else { "-Urm" }.to_string(),
            "env".to_string(),
        ];
        words.extend(
            self.env()
                .into_iter()
                .map(|(name, value)| format!("{name}={value}")),
        );
        words.extend(
            [
                "sh",
                "-c",
                "mount --bind \"$1\" \"$2\" && shift 2 && exec \"$@\"",
                "sh",
            ]
            .map(String::from),
        );
        words.push(self.physical_dir().to_string_lossy().into_owned());
        words.push(self.logical.to_string_lossy().into_owned());
        words
    }

    pub fn command(&self, program: &str) -> Command {
        let words = self.prefix();
        let mut command = self.owner.command(&words[0]);
        command
            .args(&words[1..])
            .arg(program)
            .env("HOME", self.dir.join("home"))
            .current_dir(self.dir.path());
        command
    }

    /// `nix-store ARGS` in it; its standard output.
    pub fn store(&self, args: &[&str]) -> String {
        output_of(self.command("nix-store").args(args))
    }

    pub fn is_valid(&self, path: &str) -> bool {
        let mut command = self.command("nix-store");
        command
            .args(["--check-validity", path])
            .output()
            .expect("start unshare")
            .status
            .success()
    }
}

/// A nix-daemon on a socket of its own, serving a [`NixStore`].
pub struct NixDaemon {
    running: Running,
    socket: PathBuf,
    env: Vec<(String, String)>,
    _dir: TestDir,
}

impl NixDaemon {
    /// `trusted` are user names, as `trusted-users` in nix.conf; everybody else may connect but not be believed.
    pub fn start(store: &NixStore, trusted: &[&str]) -> NixDaemon {
        let dir = TestDir::new(store.owner());
        let conf = format!("{NIX_CONF}trusted-users = {}\n", trusted.join(" "));
        std::fs::write(dir.join("nix.conf"), conf).expect("write nix.conf");
        let socket = dir.join("sock");
        // The state directory exists and the daemon is told to use it itself: otherwise it would connect to its own
        // socket, again and again.
        let mut command = store.command("nix-daemon");
        command
            .env("NIX_CONF_DIR", dir.path())
            .env("NIX_DAEMON_SOCKET_PATH", &socket)
            .env("NIX_REMOTE", "local");
        let mut running = Running::start(
            command,
            "nix-daemon",
            &dir.join("daemon.log"),
            libc::SIGTERM,
        );
        running.eventually("nix-daemon should listen", || {
            UnixStream::connect(&socket).ok()
        });
        let mut env = store.env();
        env.retain(|(name, _)| name != "NIX_REMOTE");
        env.push(("NIX_REMOTE".into(), format!("unix://{}", socket.display())));
        NixDaemon {
            running,
            socket,
            env,
            _dir: dir,
        }
    }

    pub fn socket(&self) -> &Path {
        &self.socket
    }

    pub fn running(&mut self) -> &mut Running {
        &mut self.running
    }

    /// What makes a client use the store through this daemon.
    pub fn env(&self) -> Vec<(String, String)> {
        self.env.clone()
    }
}

fn lay_out(dir: &TestDir, owner: RunAs) {
    for name in ["store", "var", "var/log", "conf", "home", "home/.cache"] {
        dir.sub(name, owner);
    }
    std::fs::write(dir.join("conf/nix.conf"), NIX_CONF).expect("write nix.conf");
}

fn env_of(dir: &TestDir, store_dir: &Path) -> Vec<(String, String)> {
    let at = |name: &str| dir.join(name).to_string_lossy().into_owned();
    vec![
        (
            "NIX_STORE_DIR".into(),
            store_dir.to_string_lossy().into_owned(),
        ),
        ("NIX_STATE_DIR".into(), at("var")),
        ("NIX_LOG_DIR".into(), at("var/log")),
        ("NIX_CONF_DIR".into(), at("conf")),
        ("NIX_REMOTE".into(), "local".into()),
        ("XDG_CACHE_HOME".into(), at("home/.cache")),
    ]
}
