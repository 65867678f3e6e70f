//! The program under test, as a child process.

use std::ffi::OsStr;
use std::net::TcpListener;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::process::CommandExt;
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
    /// Listening sockets handed to it, by name.
    sockets: Vec<(String, OwnedFd)>,
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
            sockets: Vec::new(),
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

    /// Hand it listening sockets as systemd does. (Numbers below 100 are for the program, so ours are moved out of the way.)
    pub fn with_sockets(mut self, sockets: &[(&str, &TcpListener)]) -> Self {
        for (name, socket) in sockets {
            // SAFETY: the new descriptor is checked and owned at once.
            let fd = unsafe {
                let fd = libc::fcntl(socket.as_raw_fd(), libc::F_DUPFD_CLOEXEC, 100);
                assert!(fd >= 100, "a descriptor");
                OwnedFd::from_raw_fd(fd)
            };
            self.sockets.push(((*name).into(), fd));
        }
        let names: Vec<&str> = self.sockets.iter().map(|(name, _)| name.as_str()).collect();
        let (count, names) = (names.len(), names.join(":"));
        // Only the process itself knows its number.
        let script = format!("LISTEN_PID=$$ LISTEN_FDS={count} LISTEN_FDNAMES={names} exec \"$@\"");
        self.prefix = ["sh", "-c", &script, "sh"].map(String::from).to_vec();
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
        let sockets: Vec<i32> = self.sockets.iter().map(|(_, fd)| fd.as_raw_fd()).collect();
        // SAFETY: dup2 is async-signal-safe and touches no memory of ours.
        unsafe {
            command.pre_exec(move || {
                for (at, fd) in sockets.iter().enumerate() {
                    if libc::dup2(*fd, 3 + at as i32) < 0 {
                        return Err(std::io::Error::last_os_error());
                    }
                }
                Ok(())
            });
        }
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
