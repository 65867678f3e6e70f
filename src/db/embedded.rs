//! The private PostgreSQL of `--state DIR`: made, started, adopted and stopped by hydrad.
//!
//! Knows PostgreSQL's programs, the cluster's folder, its users and its socket. Does not know
//! Hydra's tables: the database `hydra` it offers is empty at first.
//!
//! What lies in DIR:
//!
//! | name | what |
//! |---|---|
//! | `postgres/` | the cluster, 0700, owned by the user the server runs as; with the server's socket |
//! | `postgres.tmp/` | a cluster being made; removed and made again at the next start |
//! | `postgres.log` | what the server says |
//! | `postgres.lock` | locked by the hydrad that looks after the server |
//! | `postgres.socket-dir` | where the socket is, if DIR's path is too long for one |
//!
//! PostgreSQL refuses to run as root. Started as root, hydrad runs it as the owner of DIR; is that
//! root too, as `postgres`, else `nobody`. Only `postgres/` changes owner; a root-owned DIR that
//! others cannot pass through gets the search bit for others.
//!
//! The server accepts no network connections. Who may log in is decided by the operating system's
//! user: root, the server's own user and the user hydrad runs as become `hydra` or `postgres`.
//!
//! The server is a child in a process group of its own, so that Ctrl-C reaches hydrad alone. If
//! hydrad is killed, the server goes on; the next hydrad adopts it.

use std::env;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use super::connect::DbTarget;
use super::error::DbError;
use super::os_user::{self, OsUser};

/// Connections the server allows; above the default pool, its listeners and a web server.
pub const MAX_CONNECTIONS: u32 = 100;
/// Part of the socket's name; nothing listens on such a port.
const PORT: u16 = 5432;
/// The kernel's limit is 107.
const SOCKET_PATH_BYTES_MAX: usize = 90;
/// A crashed server may have much to repeat.
const READY_TIMEOUT: Duration = Duration::from_secs(600);
/// Fast shutdown writes out what is in memory.
const STOP_TIMEOUT: Duration = Duration::from_secs(60);
const POLL: Duration = Duration::from_millis(20);
const TELL_INTERVAL: Duration = Duration::from_secs(5);
/// The log is put aside at start when it is longer.
const LOG_BYTES_MAX: u64 = 16 << 20;
const APPLICATION: &str = "hydrad-embedded";

const SHOW_DATA_DIRECTORY: &str = include_str!("../../sql/embedded/show_data_directory.sql");
const FIND_ROLE: &str = include_str!("../../sql/embedded/find_role.sql");
const CREATE_ROLE: &str = include_str!("../../sql/embedded/create_role.sql");
const FIND_DATABASE: &str = include_str!("../../sql/embedded/find_database.sql");
const CREATE_DATABASE: &str = include_str!("../../sql/embedded/create_database.sql");

/// PostgreSQL's server programs of one version.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Binaries {
    /// Holds `postgres` and `initdb`.
    pub dir: PathBuf,
    /// 15 for 15.18.
    pub major: u32,
}

/// A private server, running. Dropping it stops it; [`Embedded::stop`] also reports trouble.
pub struct Embedded {
    dir: PathBuf,
    socket_dir: PathBuf,
    server: Option<Server>,
    adopted: bool,
    /// Held as long as this value lives.
    _lock: File,
}

enum Server {
    Child(Child),
    /// Left by another hydrad.
    Adopted(i32),
}

impl Embedded {
    /// Starts the server of `dir`, making the cluster if there is none, or adopts the one that
    /// runs. Returns when the database `hydra` accepts connections. Tells on stderr what takes long.
    pub fn start(dir: &Path) -> Result<Embedded, DbError> {
        Embedded::start_with(dir, &find_binaries())
    }

    /// As [`Embedded::start`], with these programs to choose from.
    pub fn start_with(dir: &Path, binaries: &[Binaries]) -> Result<Embedded, DbError> {
        let place = Place::open(dir)?;
        let lock = place.lock()?;
        place.remove_unfinished()?;
        let data = place.data();
        let running = if data.exists() {
            place.running()?
        } else {
            None
        };
        if let Some(running) = running {
            let mut embedded = Embedded {
                dir: place.dir.clone(),
                socket_dir: running.socket_dir,
                server: Some(Server::Adopted(running.pid)),
                adopted: true,
                _lock: lock,
            };
            embedded.wait_until_ready()?;
            embedded.check_data_directory(&data)?;
            embedded.ensure_database()?;
            return Ok(embedded);
        }

        let binaries = place.choose(binaries)?;
        if !data.exists() {
            place.make_cluster(binaries)?;
        }
        place.write_access_rules()?;
        let socket_dir = place.socket_dir()?;
        let child = place.spawn(binaries, &socket_dir)?;
        let mut embedded = Embedded {
            dir: place.dir.clone(),
            socket_dir,
            server: Some(Server::Child(child)),
            adopted: false,
            _lock: lock,
        };
        embedded.wait_until_ready()?;
        embedded.ensure_database()?;
        Ok(embedded)
    }

    /// The server of `dir` if one runs, for commands that only ask. Starts and changes nothing.
    pub fn running(dir: &Path) -> Result<Option<DbTarget>, DbError> {
        if !dir.exists() {
            return Ok(None);
        }
        let place = Place::look(dir)?;
        let running = place.running()?;
        Ok(running.map(|r| target(&place.dir, &r.socket_dir)))
    }

    /// Database `hydra` as user `hydra`.
    pub fn target(&self) -> DbTarget {
        target(&self.dir, &self.socket_dir)
    }

    /// Whether the server was running already.
    pub fn adopted(&self) -> bool {
        self.adopted
    }

    /// The server's process.
    pub fn pid(&self) -> Option<u32> {
        match self.server.as_ref()? {
            Server::Child(child) => Some(child.id()),
            Server::Adopted(pid) => u32::try_from(*pid).ok(),
        }
    }

    /// Stops the server and waits for its end: open transactions are rolled back, everything
    /// committed is on disk.
    pub fn stop(mut self) -> Result<(), DbError> {
        self.stop_now()
    }

    fn stop_now(&mut self) -> Result<(), DbError> {
        let Some(mut server) = self.server.take() else {
            return Ok(());
        };
        let pid = match &server {
            Server::Child(child) => i32::try_from(child.id()).unwrap_or(0),
            Server::Adopted(pid) => *pid,
        };
        signal(pid, libc::SIGINT);
        let deadline = Instant::now() + STOP_TIMEOUT;
        while Instant::now() < deadline {
            let gone = match &mut server {
                Server::Child(child) => matches!(child.try_wait(), Ok(Some(_)) | Err(_)),
                Server::Adopted(pid) => !is_alive(*pid),
            };
            if gone {
                self.remove_short_socket_dir();
                return Ok(());
            }
            thread::sleep(POLL);
        }
        Err(embedded_error(
            &self.dir,
            format!(
                "process {pid} did not stop within {STOP_TIMEOUT:?}; look into postgres.log there, \
                 then try `kill -QUIT {pid}`"
            ),
        ))
    }

    fn remove_short_socket_dir(&self) {
        let record = self.dir.join("postgres.socket-dir");
        if record.exists() && fs::remove_dir_all(&self.socket_dir).is_ok() {
            // Without the folder the record is only a hint; the next start checks it anyway.
            fs::remove_file(record).ok();
        }
    }

    fn superuser(&self) -> DbTarget {
        DbTarget::socket(&self.socket_dir, PORT, "postgres", "postgres", "--state")
    }

    fn wait_until_ready(&mut self) -> Result<(), DbError> {
        let start = Instant::now();
        let mut told = start;
        let target = self.superuser();
        loop {
            let trouble = match target.connect(APPLICATION) {
                Ok(_) => return Ok(()),
                Err(e) => e,
            };
            let ended = match &mut self.server {
                Some(Server::Child(child)) => {
                    child.try_wait().ok().flatten().map(|s| s.to_string())
                }
                Some(Server::Adopted(pid)) if !is_alive(*pid) => Some("it is gone".to_owned()),
                _ => None,
            };
            if let Some(how) = ended {
                self.server = None;
                return Err(embedded_error(
                    &self.dir,
                    format!(
                        "the server ended at start ({how}); it said:\n{}",
                        self.log_tail()
                    ),
                ));
            }
            if !trouble.is_lost() || start.elapsed() > READY_TIMEOUT {
                let reason = format!("the server does not let us in: {trouble}");
                return Err(embedded_error(&self.dir, reason));
            }
            if told.elapsed() > TELL_INTERVAL {
                told = Instant::now();
                eprintln!(
                    "hydrad: waiting for PostgreSQL in {} for {} s: {trouble}",
                    self.dir.display(),
                    start.elapsed().as_secs()
                );
            }
            thread::sleep(POLL);
        }
    }

    fn check_data_directory(&self, data: &Path) -> Result<(), DbError> {
        let mut client = self.superuser().connect(APPLICATION)?;
        let theirs: String = client.query_one(SHOW_DATA_DIRECTORY, &[])?.get(0);
        let same = match (fs::canonicalize(&theirs), fs::canonicalize(data)) {
            (Ok(a), Ok(b)) => a == b,
            _ => false,
        };
        if same {
            return Ok(());
        }
        Err(embedded_error(
            &self.dir,
            format!(
                "the server at {} serves {theirs} instead; stop it, or remove postgres/postmaster.pid \
                 if it was copied with the folder",
                self.socket_dir.display()
            ),
        ))
    }

    fn ensure_database(&self) -> Result<(), DbError> {
        let mut client = self.superuser().connect(APPLICATION)?;
        if !client.query_one(FIND_ROLE, &[])?.get::<_, bool>(0) {
            client.batch_execute(CREATE_ROLE)?;
        }
        if !client.query_one(FIND_DATABASE, &[])?.get::<_, bool>(0) {
            client.batch_execute(CREATE_DATABASE)?;
        }
        Ok(())
    }

    fn log_tail(&self) -> String {
        const TAIL_BYTES: u64 = 2000;
        let tail = || -> io::Result<String> {
            let mut file = File::open(self.dir.join("postgres.log"))?;
            let length = file.metadata()?.len();
            file.seek(SeekFrom::Start(length.saturating_sub(TAIL_BYTES)))?;
            let mut bytes = Vec::new();
            file.read_to_end(&mut bytes)?;
            Ok(String::from_utf8_lossy(&bytes).trim().to_owned())
        };
        tail().unwrap_or_else(|e| format!("(postgres.log cannot be read: {e})"))
    }
}

impl Drop for Embedded {
    fn drop(&mut self) {
        if let Err(e) = self.stop_now() {
            log::error!("{e}");
        }
    }
}

fn target(dir: &Path, socket_dir: &Path) -> DbTarget {
    let origin = format!("--state {}", dir.display());
    DbTarget::socket(socket_dir, PORT, "hydra", "hydra", &origin)
}

fn embedded_error(dir: &Path, reason: String) -> DbError {
    DbError::Embedded {
        dir: dir.to_owned(),
        reason,
    }
}

/// DIR, and as whom the server runs.
struct Place {
    dir: PathBuf,
    user: OsUser,
}

/// A server that serves this DIR.
struct Running {
    pid: i32,
    socket_dir: PathBuf,
}

impl Place {
    /// Makes DIR if needed.
    fn open(dir: &Path) -> Result<Place, DbError> {
        if !dir.exists() {
            fs::create_dir_all(dir).map_err(file("create", dir))?;
            fs::set_permissions(dir, fs::Permissions::from_mode(0o711))
                .map_err(file("set the mode of", dir))?;
        }
        let place = Place::look(dir)?;
        place.open_the_way()?;
        Ok(place)
    }

    fn look(dir: &Path) -> Result<Place, DbError> {
        let dir = fs::canonicalize(dir).map_err(file("find", dir))?;
        let data = dir.join("postgres");
        let owned = if data.exists() { &data } else { &dir };
        let owner = fs::metadata(owned).map_err(file("look at", owned))?.uid();
        let user = server_user(&dir, owner)?;
        Ok(Place { dir, user })
    }

    fn data(&self) -> PathBuf {
        self.dir.join("postgres")
    }

    /// Only one hydrad looks after a server, and stops it.
    fn lock(&self) -> Result<File, DbError> {
        let path = self.dir.join("postgres.lock");
        let mut lock = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(&path)
            .map_err(file("open", &path))?;
        // SAFETY: the descriptor is open as long as `lock` lives.
        if unsafe { libc::flock(lock.as_raw_fd(), libc::LOCK_EX | libc::LOCK_NB) } != 0 {
            let mut by = String::new();
            lock.read_to_string(&mut by).ok();
            return Err(embedded_error(
                &self.dir,
                format!(
                    "another hydrad (process {}) looks after it; stop that one, or use another --state",
                    by.trim()
                ),
            ));
        }
        lock.set_len(0)
            .and_then(|()| writeln!(lock, "{}", std::process::id()))
            .map_err(file("write", &path))?;
        Ok(lock)
    }

    /// The server's user must be able to pass through every folder above the cluster.
    fn open_the_way(&self) -> Result<(), DbError> {
        if os_user::effective_uid() != 0 {
            return Ok(());
        }
        for folder in self.dir.ancestors() {
            let meta = fs::metadata(folder).map_err(file("look at", folder))?;
            let mode = meta.mode();
            let passes = (meta.uid() == self.user.uid && mode & 0o100 != 0)
                || (meta.gid() == self.user.gid && mode & 0o010 != 0)
                || mode & 0o001 != 0;
            if passes {
                continue;
            }
            if folder != self.dir {
                return Err(embedded_error(
                    &self.dir,
                    format!(
                        "PostgreSQL runs as user {}, who cannot pass through {}; run `chmod o+x {}` \
                         or choose another folder",
                        self.user.name,
                        folder.display(),
                        folder.display()
                    ),
                ));
            }
            let mode = (mode & 0o7777) | 0o001;
            fs::set_permissions(folder, fs::Permissions::from_mode(mode))
                .map_err(file("set the mode of", folder))?;
            eprintln!(
                "hydrad: {} may now be passed through by others (mode {mode:o}), because PostgreSQL \
                 runs as user {}",
                folder.display(),
                self.user.name
            );
        }
        Ok(())
    }

    fn remove_unfinished(&self) -> Result<(), DbError> {
        let unfinished = self.dir.join("postgres.tmp");
        match fs::remove_dir_all(&unfinished) {
            Ok(()) => {
                eprintln!(
                    "hydrad: removed {}, a cluster that was never finished",
                    unfinished.display()
                );
                Ok(())
            }
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
            Err(e) => Err(file("remove", &unfinished)(e)),
        }
    }

    /// The server that `postmaster.pid` names, if it lives and serves this folder. A stale file
    /// is removed when no process at all works in the folder, so that a number given to another
    /// process since (a reboot, a container) does not keep PostgreSQL from starting.
    fn running(&self) -> Result<Option<Running>, DbError> {
        let path = self.data().join("postmaster.pid");
        let text = match fs::read_to_string(&path) {
            Ok(text) => text,
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(e) => return Err(file("read", &path)(e)),
        };
        let lines: Vec<&str> = text.lines().map(str::trim).collect();
        let pid: Option<i32> = lines.first().and_then(|l| l.parse().ok());
        let Some(pid) = pid.filter(|pid| *pid > 0) else {
            return Ok(None);
        };
        if !is_alive(pid) {
            return Ok(None);
        }
        let data = fs::canonicalize(self.data()).map_err(file("find", &self.data()))?;
        if works_in(pid) != Some(data.clone()) {
            if !anybody_works_in(&data) {
                eprintln!(
                    "hydrad: removing {}: process {pid} is not its server",
                    path.display()
                );
                fs::remove_file(&path).map_err(file("remove", &path))?;
            }
            return Ok(None);
        }
        let socket_dir = match lines.get(4) {
            Some(dir) if !dir.is_empty() => PathBuf::from(dir),
            _ => self.recorded_socket_dir().unwrap_or(data),
        };
        Ok(Some(Running { pid, socket_dir }))
    }

    /// The programs for this cluster: of its own version, or the newest for a new one.
    fn choose<'a>(&self, binaries: &'a [Binaries]) -> Result<&'a Binaries, DbError> {
        let found: Vec<String> = binaries
            .iter()
            .map(|b| format!("{} in {}", b.major, b.dir.display()))
            .collect();
        let found = match found.len() {
            0 => "no server programs were found".to_owned(),
            _ => format!("found: {}", found.join(", ")),
        };
        let path = self.data().join("PG_VERSION");
        let text = match fs::read_to_string(&path) {
            Ok(text) => text,
            Err(e) if e.kind() == io::ErrorKind::NotFound && !self.data().exists() => {
                return binaries.iter().max_by_key(|b| b.major).ok_or_else(|| {
                    embedded_error(
                        &self.dir,
                        format!(
                            "{found}; install PostgreSQL's server (Debian: apt install postgresql), or \
                             set PG_BIN to the folder of `postgres` and `initdb`"
                        ),
                    )
                });
            }
            Err(e) => return Err(file("read", &path)(e)),
        };
        let major: Option<u32> = text.trim().split('.').next().and_then(|v| v.parse().ok());
        let Some(major) = major else {
            let reason = format!("postgres/PG_VERSION says `{}`, not a version", text.trim());
            return Err(embedded_error(&self.dir, reason));
        };
        binaries.iter().find(|b| b.major == major).ok_or_else(|| {
            embedded_error(
                &self.dir,
                format!(
                    "the cluster was made by PostgreSQL {major}, which only PostgreSQL {major} can \
                     serve; {found}; install version {major} beside it, or set PG_BIN; to move to a \
                     newer version, stop hydrad and use pg_upgrade, or pg_dump with the old version \
                     and psql with the new one"
                ),
            )
        })
    }

    fn make_cluster(&self, binaries: &Binaries) -> Result<(), DbError> {
        let unfinished = self.dir.join("postgres.tmp");
        eprintln!(
            "hydrad: making a PostgreSQL {} cluster in {} (user {})",
            binaries.major,
            self.data().display(),
            self.user.name
        );
        fs::create_dir(&unfinished).map_err(file("create", &unfinished))?;
        self.give(&unfinished, 0o700)?;
        let mut command = self.command(&binaries.dir.join("initdb"), &binaries.dir);
        command
            .arg("-D")
            .arg(&unfinished)
            .args(["-U", "postgres", "-E", "UTF8", "--no-locale"])
            .args(["--auth-local=peer", "--auth-host=reject"])
            .stdin(Stdio::null());
        let output = command
            .output()
            .map_err(file("run", &binaries.dir.join("initdb")))?;
        if !output.status.success() {
            let said = String::from_utf8_lossy(&output.stderr);
            return Err(embedded_error(
                &self.dir,
                format!("initdb failed ({}): {}", output.status, said.trim()),
            ));
        }
        let data = self.data();
        fs::rename(&unfinished, &data).map_err(file("rename to", &data))?;
        // The new name must survive a power cut as the cluster's own files do.
        File::open(&self.dir)
            .and_then(|d| d.sync_all())
            .map_err(file("sync", &self.dir))
    }

    /// Written at each start: the user hydrad runs as may be another one than last time.
    fn write_access_rules(&self) -> Result<(), DbError> {
        let mut users = vec!["root".to_owned(), self.user.name.clone()];
        users.extend(os_user::current().map(|u| u.name));
        users.sort();
        users.dedup();
        let mut map = String::from("# Written by hydrad at each start.\n");
        for user in &users {
            for role in ["hydra", "postgres"] {
                map.push_str(&format!("hydrad \"{}\" {role}\n", user.replace('"', "")));
            }
        }
        let rules = "# Written by hydrad at each start.\nlocal all all peer map=hydrad\n";
        for (name, text) in [("pg_ident.conf", map.as_str()), ("pg_hba.conf", rules)] {
            let path = self.data().join(name);
            fs::write(&path, text).map_err(file("write", &path))?;
            self.give(&path, 0o600)?;
        }
        Ok(())
    }

    /// The cluster itself, unless its path is too long for a socket: then a folder of its own.
    fn socket_dir(&self) -> Result<PathBuf, DbError> {
        let data = self.data();
        let name_bytes = format!("/.s.PGSQL.{PORT}").len();
        if data.as_os_str().len() + name_bytes <= SOCKET_PATH_BYTES_MAX {
            return Ok(data);
        }
        if let Some(dir) = self.recorded_socket_dir() {
            return Ok(dir);
        }
        let own_runtime_dir = || {
            let dir = PathBuf::from(env::var_os("XDG_RUNTIME_DIR")?);
            let own = os_user::effective_uid() == self.user.uid;
            (own && dir.is_absolute() && dir.is_dir() && dir.as_os_str().len() < 40).then_some(dir)
        };
        let parent = own_runtime_dir().unwrap_or_else(|| PathBuf::from("/tmp"));
        let dir = make_unique_dir(&parent)?;
        self.give(&dir, 0o700)?;
        let record = self.dir.join("postgres.socket-dir");
        fs::write(&record, dir.to_string_lossy().as_bytes()).map_err(file("write", &record))?;
        Ok(dir)
    }

    /// The folder of an earlier start, if it is still ours alone: /tmp belongs to everybody.
    fn recorded_socket_dir(&self) -> Option<PathBuf> {
        let text = fs::read_to_string(self.dir.join("postgres.socket-dir")).ok()?;
        let dir = PathBuf::from(text.trim());
        let meta = fs::symlink_metadata(&dir).ok()?;
        let ours = meta.is_dir() && meta.uid() == self.user.uid && meta.mode() & 0o777 == 0o700;
        ours.then_some(dir)
    }

    fn spawn(&self, binaries: &Binaries, socket_dir: &Path) -> Result<Child, DbError> {
        let path = self.dir.join("postgres.log");
        if fs::metadata(&path).is_ok_and(|m| m.len() > LOG_BYTES_MAX) {
            let old = self.dir.join("postgres.log.old");
            fs::rename(&path, &old).map_err(file("rename to", &old))?;
        }
        let log = OpenOptions::new()
            .append(true)
            .create(true)
            .mode(0o640)
            .open(&path)
            .map_err(file("open", &path))?;
        let log_too = log.try_clone().map_err(file("open", &path))?;
        // A list of folders to PostgreSQL, in which quotes keep commas and blanks together.
        let sockets = format!("\"{}\"", socket_dir.to_string_lossy().replace('"', "\"\""));
        let program = binaries.dir.join("postgres");
        let mut command = self.command(&program, &binaries.dir);
        command.arg("-D").arg(self.data());
        for (key, value) in [
            ("listen_addresses", ""),
            ("port", &PORT.to_string()),
            ("unix_socket_directories", sockets.as_str()),
            ("unix_socket_permissions", "0700"),
            ("max_connections", &MAX_CONNECTIONS.to_string()),
            ("fsync", "on"),
            ("synchronous_commit", "on"),
            ("full_page_writes", "on"),
            ("logging_collector", "off"),
            ("log_destination", "stderr"),
            ("log_line_prefix", "%m [%p] %q%a "),
        ] {
            command.arg("-c").arg(format!("{key}={value}"));
        }
        command
            .stdin(Stdio::null())
            .stdout(log)
            .stderr(log_too)
            .process_group(0)
            .spawn()
            .map_err(file("run", &program))
    }

    /// A command with a clean environment, as the server's user.
    fn command(&self, program: &Path, bin: &Path) -> Command {
        let mut command = Command::new(program);
        command
            .env_clear()
            .env("PATH", format!("{}:/usr/bin:/bin", bin.display()))
            .env("LC_ALL", "C")
            .env("HOME", &self.user.home)
            .current_dir("/");
        if os_user::effective_uid() == 0 {
            // Without further groups: std drops them when it changes the user.
            command.uid(self.user.uid).gid(self.user.gid);
        }
        command
    }

    fn give(&self, path: &Path, mode: u32) -> Result<(), DbError> {
        fs::set_permissions(path, fs::Permissions::from_mode(mode))
            .map_err(file("set the mode of", path))?;
        if os_user::effective_uid() == 0 {
            std::os::unix::fs::chown(path, Some(self.user.uid), Some(self.user.gid))
                .map_err(file("change the owner of", path))?;
        }
        Ok(())
    }
}

/// As whom the server of a folder owned by `owner` runs.
fn server_user(dir: &Path, owner: u32) -> Result<OsUser, DbError> {
    let own_uid = os_user::effective_uid();
    if own_uid != 0 {
        let own = os_user::current().ok_or_else(|| {
            embedded_error(
                dir,
                format!(
                    "uid {own_uid} has no name, and PostgreSQL wants one; add it to /etc/passwd"
                ),
            )
        })?;
        if owner == own_uid {
            return Ok(own);
        }
        let name = os_user::by_uid(owner).map_or_else(|| owner.to_string(), |u| u.name);
        return Err(embedded_error(
            dir,
            format!(
                "it belongs to user {name}, and hydrad runs as {}; run hydrad as {name} or root, or \
                 choose another folder",
                own.name
            ),
        ));
    }
    let user = if owner == 0 {
        os_user::by_name("postgres").or_else(|| os_user::by_name("nobody"))
    } else {
        os_user::by_uid(owner)
    };
    user.ok_or_else(|| {
        embedded_error(
            dir,
            format!(
                "PostgreSQL cannot run as root, and there is no user to run it as (owner {owner}, \
                 `postgres`, `nobody`); give the folder to an ordinary user"
            ),
        )
    })
}

/// The server programs of this host: `$PG_BIN` alone if set, else the search path and the places
/// distributions use; each version once, the newest first.
pub fn find_binaries() -> Vec<Binaries> {
    if let Some(dir) = env::var_os("PG_BIN").filter(|d| !d.is_empty()) {
        return binaries_in(Path::new(&dir)).into_iter().collect();
    }
    let mut dirs: Vec<PathBuf> = env::var_os("PATH")
        .map(|path| env::split_paths(&path).collect())
        .unwrap_or_default();
    for (parent, below) in [("/usr/lib/postgresql", "bin"), ("/usr", "bin")] {
        for entry in fs::read_dir(parent).into_iter().flatten().flatten() {
            let name = entry.file_name();
            if parent != "/usr" || name.to_string_lossy().starts_with("pgsql-") {
                dirs.push(entry.path().join(below));
            }
        }
    }
    dirs.push(PathBuf::from("/run/current-system/sw/bin"));
    dirs.push(PathBuf::from("/nix/var/nix/profiles/default/bin"));
    if let Some(home) = env::var_os("HOME") {
        dirs.push(PathBuf::from(home).join(".nix-profile/bin"));
    }
    let mut found: Vec<Binaries> = Vec::new();
    for dir in dirs {
        if let Some(binaries) = binaries_in(&dir) {
            if !found.iter().any(|f| f.major == binaries.major) {
                found.push(binaries);
            }
        }
    }
    found.sort_by_key(|b| std::cmp::Reverse(b.major));
    found
}

fn binaries_in(dir: &Path) -> Option<Binaries> {
    if !dir.is_absolute() || !dir.join("initdb").is_file() || !dir.join("postgres").is_file() {
        return None;
    }
    let output = Command::new(dir.join("postgres"))
        .arg("--version")
        .stdin(Stdio::null())
        .output()
        .ok()?;
    Some(Binaries {
        dir: dir.to_owned(),
        major: major_of(&String::from_utf8_lossy(&output.stdout))?,
    })
}

/// `postgres (PostgreSQL) 15.18 (Debian 15.18-0+deb12u1)` or `... 18beta1`.
fn major_of(version: &str) -> Option<u32> {
    let number = version.split_once("(PostgreSQL)")?.1.trim_start();
    let end = number
        .find(|c: char| !c.is_ascii_digit())
        .unwrap_or(number.len());
    number[..end].parse().ok()
}

fn file<'a>(doing: &'static str, path: &'a Path) -> impl Fn(io::Error) -> DbError + 'a {
    move |cause| DbError::File {
        doing,
        path: path.to_owned(),
        cause,
    }
}

fn make_unique_dir(parent: &Path) -> Result<PathBuf, DbError> {
    let mut template = parent
        .join("hydrad-XXXXXX")
        .into_os_string()
        .into_encoded_bytes();
    template.push(0);
    // SAFETY: the template is a NUL-terminated buffer that mkdtemp may write to.
    let made = unsafe { libc::mkdtemp(template.as_mut_ptr().cast()) };
    if made.is_null() {
        return Err(file("create a folder in", parent)(
            io::Error::last_os_error(),
        ));
    }
    template.pop();
    Ok(PathBuf::from(
        String::from_utf8_lossy(&template).into_owned(),
    ))
}

fn signal(pid: i32, signal: i32) {
    if pid > 0 {
        // SAFETY: kill has no preconditions; the process is the server we looked after.
        unsafe { libc::kill(pid, signal) };
    }
}

/// A zombie counts as gone.
fn is_alive(pid: i32) -> bool {
    match fs::read_to_string(format!("/proc/{pid}/stat")) {
        // The state follows the name, which may itself contain parentheses.
        Ok(stat) => stat
            .rsplit_once(')')
            .is_some_and(|(_, rest)| !rest.trim_start().starts_with(['Z', 'X'])),
        Err(_) => false,
    }
}

/// A server's working folder is its cluster.
fn works_in(pid: i32) -> Option<PathBuf> {
    fs::read_link(format!("/proc/{pid}/cwd")).ok()
}

fn anybody_works_in(data: &Path) -> bool {
    fs::read_dir("/proc")
        .into_iter()
        .flatten()
        .flatten()
        .filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok())
        .any(|pid| works_in(pid).is_some_and(|cwd| cwd == data) && is_alive(pid))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_read_as_postgres_prints_them() {
        for (text, major) in [
            (
                "postgres (PostgreSQL) 15.18 (Debian 15.18-0+deb12u1)\n",
                Some(15),
            ),
            ("postgres (PostgreSQL) 18beta1", Some(18)),
            ("postgres (PostgreSQL) 9.6.24", Some(9)),
            ("postgres (PostgreSQL)", None),
            ("bash 5.2", None),
        ] {
            assert_eq!(major_of(text), major, "{text}");
        }
    }
}
