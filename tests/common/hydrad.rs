//! The program under test, as a child process.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus};
use std::sync::OnceLock;

use super::process::{children_of, wait_gone, Running};
use super::{Db, NixStore, RunAs, TestDir};

/// What to start; see [`Hydrad::run`].
pub struct HydradBuilder {
    args: Vec<String>,
    env: Vec<(String, String)>,
    user: RunAs,
    /// Words in front of the program.
    prefix: Vec<String>,
}

/// A running hydrad. It is killed when dropped, and what it has started is gone then; a failing test shows the end of
/// its log.
pub struct Hydrad {
    running: Running,
    _dir: TestDir,
}

impl Hydrad {
    /// `hydrad ARGS`, by default without root's rights.
    pub fn run(args: &[&str]) -> HydradBuilder {
        let args = args.iter().map(|arg| arg.to_string()).collect();
        let mut builder = HydradBuilder {
            args,
            env: Vec::new(),
            user: RunAs::Unprivileged,
            prefix: Vec::new(),
        };
        for name in ["RUST_LOG", "RUST_BACKTRACE", "PATH"] {
            if let Ok(value) = std::env::var(name) {
                builder = builder.env(name, value);
            }
        }
        builder
    }

    pub fn pid(&self) -> u32 {
        self.running.pid()
    }

    pub fn log(&self) -> String {
        self.running.log()
    }

    /// Wait until the log has so many occurrences of `needle`.
    pub fn wait_log_times(&mut self, needle: &str, times: usize) {
        let log = self._dir.join("hydrad.log");
        self.eventually(&format!("{times} times {needle:?} in the log"), || {
            let text =
                String::from_utf8_lossy(&std::fs::read(&log).unwrap_or_default()).into_owned();
            (text.matches(needle).count() >= times).then_some(())
        });
    }

    /// Wait for a line of the log that contains `needle`, and return it.
    pub fn wait_log(&mut self, needle: &str) -> String {
        self.running.wait_log(needle)
    }

    /// Ask until there is an answer, for as long as the process lives.
    pub fn eventually<T>(&mut self, what: &str, ask: impl FnMut() -> Option<T>) -> T {
        self.running.eventually(what, ask)
    }

    /// Wait until a query's only row and column is `true`.
    pub fn wait_sql(&mut self, db: &Db, sql: &str) {
        let mut client = db.client();
        self.eventually(sql, || {
            client
                .query_one(sql, &[])
                .expect(sql)
                .get::<_, bool>(0)
                .then_some(())
        });
    }

    /// SIGKILL, as a crash would be; children of the process stay to find out for themselves.
    pub fn kill_9(&mut self) {
        self.running.kill_9();
    }

    pub fn hang_up(&self) {
        self.running.signal(libc::SIGHUP);
    }

    pub fn signal(&self, signal: i32) {
        self.running.signal(signal);
    }

    /// SIGTERM, then wait for the end.
    pub fn terminate(&mut self) -> ExitStatus {
        self.running.signal(libc::SIGTERM);
        self.running.wait()
    }

    /// Wait for the end that it comes to by itself.
    pub fn wait(&mut self) -> ExitStatus {
        self.running.wait()
    }
}

impl Drop for Hydrad {
    fn drop(&mut self) {
        if self.running.status().is_none() {
            // A program of Nix's that is just starting would make its directories anew behind our back.
            let children = children_of(self.pid());
            self.running.signal(libc::SIGKILL);
            wait_gone(&children);
        }
    }
}

impl HydradBuilder {
    pub fn env(mut self, name: &str, value: impl Into<String>) -> Self {
        self.env.push((name.into(), value.into()));
        self
    }

    pub fn envs(mut self, env: impl IntoIterator<Item = (String, String)>) -> Self {
        self.env.extend(env);
        self
    }

    /// Take back what was said of a variable.
    pub fn without(mut self, name: &str) -> Self {
        self.env.retain(|(known, _)| known != name);
        self
    }

    pub fn run_as(mut self, user: RunAs) -> Self {
        self.user = user;
        self
    }

    /// Use this database.
    pub fn db(self, db: &Db) -> Self {
        self.env("HYDRA_DBI", db.dbi())
    }

    /// Use this store, with its owner's rights.
    pub fn store(self, store: &NixStore) -> Self {
        let home = store.dir().join("home").to_string_lossy().into_owned();
        self.envs(store.env())
            .env("HOME", home)
            .run_as(store.owner())
    }

    /// Let it see a small file system of its own at `dir`: `size` as of mount(8). Needs namespaces (root, or
    /// unprivileged user namespaces).
    pub fn on_tmpfs(mut self, dir: &Path, size: &str) -> Self {
        self.prefix = ["unshare", "-Urm", "sh", "-c"].map(String::from).to_vec();
        let script = "mount -t tmpfs -o \"size=$2\" tmpfs \"$1\" && shift 2 && exec \"$@\"";
        self.prefix.extend([script.into(), "sh".into()]);
        self.prefix
            .extend([dir.to_string_lossy().into_owned(), size.into()]);
        self
    }

    /// The command as it stands, for programs that end by themselves.
    pub fn command(&self) -> Command {
        let program = binary().as_os_str();
        let mut words = self.prefix.iter().map(OsStr::new).chain([program]);
        let mut command = self.user.command(words.next().unwrap_or(program));
        command
            .args(words)
            .args(&self.args)
            .envs(self.env.iter().map(|(name, value)| (name, value)));
        command
    }

    /// Start it with its output in a log of its own. Returns at once; wait for a log line or a row that tells it is up.
    pub fn start(self) -> Hydrad {
        let dir = TestDir::new(self.user);
        let running = Running::start(
            self.command(),
            "hydrad",
            &dir.join("hydrad.log"),
            libc::SIGKILL,
        );
        Hydrad { running, _dir: dir }
    }
}

/// The program in a place where everybody may execute it: a checkout may lie in somebody's private home.
pub fn binary() -> &'static Path {
    static COPY: OnceLock<(PathBuf, Option<TestDir>)> = OnceLock::new();
    let original = Path::new(env!("CARGO_BIN_EXE_hydrad"));
    let (path, _) = COPY.get_or_init(|| {
        if !super::user::is_root() {
            return (original.into(), None);
        }
        extern "C" fn at_exit() {
            if let Some((_, Some(dir))) = COPY.get() {
                super::dir::remove_or_keep(dir.path());
            }
        }
        let dir = TestDir::new(RunAs::Me);
        let copy = dir.join("hydrad");
        if std::fs::hard_link(original, &copy).is_err() {
            std::fs::copy(original, &copy)
                .unwrap_or_else(|e| panic!("cannot copy {}: {e}", original.display()));
        }
        // SAFETY: the handler only uses a static that is never dropped.
        unsafe { libc::atexit(at_exit) };
        (copy, Some(dir))
    });
    path
}
