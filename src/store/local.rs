//! The local store: files read from disk, everything else asked of Nix over the worker protocol.
//!
//! `nix-daemon --stdio` opens the store itself where it may and leads to the daemon elsewhere; the daemon's
//! socket is a shortcut. Knows nothing of machines; takes the bytes of outputs from whoever has them.

use std::collections::{HashMap, HashSet};
use std::fs;
use std::io::{self, BufWriter, Read, Write as _};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use crossbeam_channel::{bounded, Receiver, Sender};

use super::closure::Closure;
use crate::base::lock::lock;
use crate::model::UnixSecs;
use crate::nix::hash::{nix32_encode, HashingWriter};
use crate::nix::nar;
use crate::nix::products::{self, MemberScan};
use crate::nix::realisation::{OutputId, Realisation};
use crate::nix::store_path::source_path;
use crate::nix::{Derivation, Error as NixError, StoreDir, ValidPathInfo};
use crate::sys::access::may_write;
use crate::sys::child::{self, plain_error, PipedChild};
use crate::sys::heartbeat;
use crate::sys::kill::KillSwitch;
use crate::sys::pipes::{self, PipeReader, PipeWriter, Pipes};
use crate::wire::worker::WorkerClient;
use crate::wire::Error as WireError;

/// Conversations with the daemon at once.
const DAEMONS_MAX: usize = 8;
/// A conversation is not kept longer: the daemon's temporary roots of it would keep garbage alive.
const DAEMON_AGE_MAX: Duration = Duration::from_secs(600);
/// How long the daemon may stand still while answering.
const ANSWER_MAX: Duration = Duration::from_secs(600);
/// Path infos in each of the two generations of the cache.
const CACHE_GENERATION: usize = 50_000;
/// Of a tree that becomes a source so much is handed over at once.
const DUMP_CHUNK_BYTES: usize = 64 << 10;
/// A derivation file at most, bytes.
const DRV_BYTES_MAX: u64 = 64 << 20;

/// What a closure and its size need to know of a path.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct PathMeta {
    pub path: Arc<str>,
    pub references: Box<[Arc<str>]>,
    pub nar_size: u64,
}

impl PathMeta {
    pub fn new(path: &str, references: &[String], nar_size: u64) -> PathMeta {
        PathMeta {
            path: path.into(),
            references: references
                .iter()
                .map(|reference| reference.as_str().into())
                .collect(),
            nar_size,
        }
    }
}

#[derive(Clone, PartialEq, Eq, Debug)]
enum Way {
    /// The program started with `--stdio`.
    Stdio(String),
    Socket(PathBuf),
}

pub struct LocalStore {
    dir: StoreDir,
    way: Way,
    idle: Mutex<Vec<Daemon>>,
    permits: (Sender<()>, Receiver<()>),
    answer_max: Duration,
    cache: Mutex<Cache>,
}

/// Two generations: what was asked for since the last turn-over survives the next.
#[derive(Default)]
struct Cache {
    young: HashMap<Arc<str>, Arc<PathMeta>>,
    old: HashMap<Arc<str>, Arc<PathMeta>>,
}

struct Daemon {
    client: WorkerClient<PipeReader, PipeWriter>,
    pipes: Arc<Pipes>,
    child: Option<PipedChild>,
    opened: Instant,
}

impl Drop for Daemon {
    fn drop(&mut self) {
        self.client.get_mut().1.close();
        if let Some(child) = &mut self.child {
            child.end(Duration::from_secs(5));
        }
    }
}

impl LocalStore {
    /// Finds the store as Nix's own programs would, from `NIX_STORE_DIR`, `NIX_STATE_DIR`, `NIX_REMOTE` and
    /// `NIX_DAEMON_SOCKET_PATH`. `daemon_program` is usually `nix-daemon`. Opens nothing yet.
    pub fn from_env(env: &dyn Fn(&str) -> Option<String>, daemon_program: &str) -> LocalStore {
        let filled = |name: &str| env(name).filter(|value| !value.is_empty());
        let dir = filled("NIX_STORE_DIR").unwrap_or_else(|| "/nix/store".into());
        let state = filled("NIX_STATE_DIR").unwrap_or_else(|| "/nix/var/nix".into());
        let socket = filled("NIX_DAEMON_SOCKET_PATH").map_or_else(
            || Path::new(&state).join("daemon-socket/socket"),
            PathBuf::from,
        );
        let way = match filled("NIX_REMOTE").as_deref() {
            Some("daemon") => Way::Socket(socket),
            Some(remote) if remote.starts_with("unix://") => Way::Socket(
                remote["unix://".len()..]
                    .split('?')
                    .next()
                    .unwrap_or_default()
                    .into(),
            ),
            None | Some("auto") if !may_write(Path::new(&state)) && socket.exists() => {
                Way::Socket(socket)
            }
            _ => Way::Stdio(daemon_program.to_owned()),
        };
        LocalStore {
            dir: StoreDir(dir),
            way,
            idle: Mutex::default(),
            permits: permits(DAEMONS_MAX),
            answer_max: ANSWER_MAX,
            cache: Mutex::default(),
        }
    }

    /// At most so many conversations with the daemon at once (0: the usual number), each question
    /// to be answered, or to show progress, within this time.
    pub fn limited(mut self, daemons_max: usize, answer_max: Duration) -> LocalStore {
        if daemons_max > 0 {
            self.permits = permits(daemons_max);
        }
        self.answer_max = answer_max;
        self
    }

    pub fn dir(&self) -> &StoreDir {
        &self.dir
    }

    /// How the store is reached, for messages.
    pub fn describe(&self) -> String {
        match &self.way {
            Way::Stdio(program) => format!("{} through {program} --stdio", self.dir.0),
            Way::Socket(path) => format!("{} through the daemon at {}", self.dir.0, path.display()),
        }
    }

    /// The text of a derivation.
    ///
    /// # Errors
    /// `NotFound` when it was collected; any other as the system says.
    pub fn read_drv(&self, path: &str) -> io::Result<Vec<u8>> {
        let file = fs::File::open(path)?;
        let mut bytes = Vec::with_capacity(
            usize::try_from(file.metadata()?.len().min(DRV_BYTES_MAX)).unwrap_or(0) + 1,
        );
        file.take(DRV_BYTES_MAX + 1).read_to_end(&mut bytes)?;
        if bytes.len() as u64 > DRV_BYTES_MAX {
            return Err(io::Error::new(
                io::ErrorKind::InvalidData,
                "larger than 64 MB",
            ));
        }
        Ok(bytes)
    }

    /// Which of these paths are valid. What is not on disk is not asked for.
    ///
    /// # Errors
    /// A message naming what could not be asked.
    pub fn valid_paths<S: AsRef<str>>(&self, paths: &[S]) -> Result<HashSet<String>, String> {
        let there: Vec<&str> = paths
            .iter()
            .map(AsRef::as_ref)
            .filter(|path| fs::symlink_metadata(path).is_ok())
            .collect();
        if there.is_empty() {
            return Ok(HashSet::new());
        }
        let valid = self.ask("asking which paths are valid", |client| {
            client.query_valid_paths(&there, false)
        })?;
        Ok(valid.into_iter().collect())
    }

    /// The registration of a valid path, `None` if it is not valid.
    ///
    /// # Errors
    /// As [`LocalStore::valid_paths`].
    pub fn query(&self, path: &str) -> Result<Option<ValidPathInfo>, String> {
        self.ask("asking for a path", |client| client.query_path_info(path))
    }

    /// The path of an output that is known only after the build; `None` if it was not built.
    ///
    /// # Errors
    /// As [`LocalStore::valid_paths`].
    pub fn realisation(&self, id: &OutputId) -> Result<Option<String>, String> {
        let found = self.ask("asking where an output is", |client| {
            client.query_realisation(id)
        })?;
        Ok(found.map(|found| self.dir.join(&found.out_path)))
    }

    /// Says where such an output is. Its path is valid.
    ///
    /// # Errors
    /// A message; also when the store knows it at another path.
    pub fn register_realisation(&self, realisation: &Realisation) -> Result<(), String> {
        self.ask("registering where an output is", |client| {
            client.register_drv_output(realisation)
        })
    }

    /// Puts a derivation there; its path.
    ///
    /// # Errors
    /// A message.
    pub fn add_drv(&self, drv: &Derivation, name: &str) -> Result<String, String> {
        let (text, references) = (drv.to_aterm(), drv.references());
        self.ask("adding a derivation", |client| {
            client.add_text_to_store(name, &text, &references)
        })
    }

    /// Keeps the collector from a path as long as this conversation lasts, one that is collecting included; whether it is
    /// valid. For longer it needs a root.
    ///
    /// # Errors
    /// As [`LocalStore::valid_paths`].
    pub fn hold(&self, path: &str) -> Result<bool, String> {
        self.ask("holding a path", |client| {
            client.add_temp_root(path)?;
            client.is_valid_path(path)
        })
    }

    /// Puts a file or folder there as a source: its path comes from its contents and the name. `root` is called with the path
    /// before it becomes valid. What is there already is not sent again.
    ///
    /// # Errors
    /// A message; also when the tree changes meanwhile, or holds something that a store cannot.
    pub fn add_source(
        &self,
        tree: &Path,
        name: &str,
        root: impl FnOnce(&str) -> io::Result<()>,
    ) -> Result<ValidPathInfo, String> {
        let failed = |error: &dyn std::fmt::Display| {
            format!("cannot put {} into the store: {error}", tree.display())
        };
        crate::nix::store_path::check_name(name).map_err(|error| failed(&error))?;
        let mut nar = HashingWriter::new(io::sink());
        nar::dump_path(tree, &mut nar).map_err(|error| failed(&error))?;
        let (_, nar_hash, nar_size) = nar.finish();
        let info = ValidPathInfo {
            path: source_path(&self.dir, name, &nar_hash, &[]),
            nar_hash,
            nar_size,
            ca: Some(format!("fixed:r:sha256:{}", nix32_encode(&nar_hash))),
            ..ValidPathInfo::default()
        };
        root(&info.path).map_err(|error| {
            format!(
                "cannot make a GC root for {}: {}",
                info.path,
                plain_error(&error)
            )
        })?;
        if self.hold(&info.path)? {
            return Ok(info);
        }
        let (mut reader, writer) = UnixStream::pair().map_err(|error| failed(&error))?;
        let imported = std::thread::scope(|scope| {
            let dumping = std::thread::Builder::new()
                .name("dump".to_owned())
                .spawn_scoped(scope, move || dump_into(tree, writer))
                .map_err(|error| failed(&error))?;
            let imported = self.import(&info, &mut reader);
            // Whoever still writes is told that nobody reads.
            drop(reader);
            let dumped = dumping.join().expect("BUG: dumping a tree panicked");
            match (imported, dumped) {
                (Ok(()), _) => Ok(()),
                (Err(ImportError::Store(message)), _) => Err(message),
                (Err(ImportError::Source(_)), Err(error)) => Err(failed(&error)),
                (Err(ImportError::Source(error)), Ok(())) => {
                    Err(failed(&format!("it changed meanwhile ({error})")))
                }
            }
        });
        imported.map(|()| info)
    }

    /// When a valid path was registered.
    ///
    /// # Errors
    /// As [`LocalStore::valid_paths`].
    pub fn registration_time(&self, path: &str) -> Result<Option<UnixSecs>, String> {
        Ok(self
            .query(path)?
            .map(|info| info.registration_time as UnixSecs))
    }

    /// What must be said of a path to send it.
    ///
    /// # Errors
    /// A message; also when the path is not valid any more.
    pub fn export_info(&self, path: &str) -> Result<ValidPathInfo, String> {
        let info = self.query(path)?;
        // That we built it ourselves and when is no business of another store.
        let info = info.map(|info| ValidPathInfo {
            ultimate: false,
            registration_time: 0,
            ..info
        });
        info.ok_or_else(|| format!("{path} is not in the local store any more"))
    }

    /// Gives the NAR of a valid path to `taker`, whose result comes back.
    ///
    /// # Errors
    /// A message when the store does not begin to give it; what goes wrong later the taker reads.
    pub fn read_nar<T>(
        &self,
        path: &str,
        taker: impl FnOnce(&mut dyn Read) -> T,
    ) -> Result<T, String> {
        let _permit = self.permit();
        let mut daemon = self.daemon()?;
        daemon.pipes.enter("reading a path", self.answer_max);
        let mut nar = daemon
            .client
            .nar_from_path(path, ())
            .map_err(|error| format!("the local store, reading {path}: {error}"))?;
        let taken = taker(&mut nar);
        let complete = nar.finish().is_ok();
        if complete && daemon.client.usable() {
            self.keep(daemon);
        }
        Ok(taken)
    }

    /// The closure of these paths, references before referrers.
    ///
    /// # Errors
    /// A message; also when a path is not valid.
    pub fn closure<S: AsRef<str>>(&self, paths: &[S]) -> Result<Vec<Arc<PathMeta>>, String> {
        let mut closure = Closure::default();
        for path in paths {
            closure.add(path.as_ref(), |path| self.meta(path))?;
        }
        Ok(closure.paths())
    }

    /// Sum of the NAR sizes of a closure, bytes.
    ///
    /// # Errors
    /// As [`LocalStore::closure`].
    pub fn closure_size<S: AsRef<str>>(&self, paths: &[S]) -> Result<u64, String> {
        Ok(self.closure(paths)?.iter().map(|meta| meta.nar_size).sum())
    }

    /// Remembers what a machine said of a path that is now valid here.
    pub fn learn(&self, path: &str, references: &[String], nar_size: u64) {
        let meta = PathMeta::new(path, references, nar_size);
        lock(&self.cache).insert(Arc::new(meta));
    }

    fn meta(&self, path: &str) -> Result<Arc<PathMeta>, String> {
        if let Some(meta) = lock(&self.cache).get(path) {
            return Ok(meta);
        }
        let info = self.export_info(path)?;
        let meta = Arc::new(PathMeta::new(path, &info.references, info.nar_size));
        lock(&self.cache).insert(meta.clone());
        Ok(meta)
    }

    /// Looks for products in valid paths on disk, the outputs of one derivation. Answers in the same order.
    ///
    /// # Errors
    /// A message naming the path.
    pub fn scan(&self, paths: &[&str]) -> Result<Vec<MemberScan>, String> {
        let places: Vec<(&str, &Path)> =
            paths.iter().map(|path| (*path, Path::new(*path))).collect();
        products::scan_paths(&self.dir, &places)
            .map_err(|error| format!("cannot look for products: {error}"))
    }

    /// Registers a path from the bytes of its NAR, checked against `info`.
    ///
    /// # Errors
    /// [`ImportError`] tells whose fault it is.
    pub fn import(&self, info: &ValidPathInfo, nar: &mut dyn Read) -> Result<(), ImportError> {
        let mut source = None;
        let result = self.ask("registering an output", |client| {
            client
                .add_to_store_nar(info, false, true, nar)
                .or_else(|error| match error {
                    // Not the store's trouble: kept apart, and the conversation goes on if it can.
                    WireError::Source(error) => {
                        source = Some(error);
                        Ok(())
                    }
                    error => Err(error),
                })
        });
        match (result, source) {
            (_, Some(error)) => Err(ImportError::Source(error)),
            (Ok(()), None) => Ok(()),
            (Err(message), None) => Err(ImportError::Store(message)),
        }
    }

    /// One question to the daemon over a kept or new conversation. A kept one may have ended meanwhile: then once
    /// more over a new one, unless something was already taken from outside (imports take care of themselves:
    /// their first bytes go out only after the daemon has been heard).
    fn ask<T>(
        &self,
        doing: &'static str,
        mut question: impl FnMut(&mut WorkerClient<PipeReader, PipeWriter>) -> Result<T, WireError>,
    ) -> Result<T, String> {
        let _permit = self.permit();
        let mut daemon = self.daemon()?;
        daemon.pipes.enter(doing, self.answer_max);
        match question(&mut daemon.client) {
            Ok(answer) => {
                if daemon.client.usable() {
                    self.keep(daemon);
                }
                Ok(answer)
            }
            Err(error) => {
                let words = daemon.pipes.stderr_tail();
                if daemon.client.usable() {
                    self.keep(daemon);
                }
                Err(with_words(
                    format!("the local store, {doing}: {error}"),
                    &words,
                ))
            }
        }
    }

    /// Which of these paths a substituter of the local store has, asked over the network one after the other.
    ///
    /// # Errors
    /// A message, in Nix's words: one of them does not answer.
    pub fn substitutable(
        &self,
        fetching: &mut Fetching,
        paths: &[&str],
    ) -> Result<HashSet<String>, String> {
        let found = self.fetch(fetching, "asking substituters", |client| {
            client.query_substitutable_paths(paths)
        })?;
        Ok(found.into_iter().collect())
    }

    /// Makes a path and all it refers to valid by substitution.
    ///
    /// # Errors
    /// A message, in Nix's words.
    pub fn substitute(&self, fetching: &mut Fetching, path: &str) -> Result<(), String> {
        self.fetch(fetching, "substituting", |client| client.ensure_path(path))
    }

    /// One question in a conversation that is nobody else's, since it may take long.
    fn fetch<T>(
        &self,
        fetching: &mut Fetching,
        doing: &'static str,
        question: impl FnOnce(&mut WorkerClient<PipeReader, PipeWriter>) -> Result<T, WireError>,
    ) -> Result<T, String> {
        let kept = fetching.daemon.take();
        let mut daemon = match kept {
            Some(daemon)
                if daemon.opened.elapsed() < DAEMON_AGE_MAX
                    && !daemon.client.get_ref().is_ready() =>
            {
                daemon
            }
            _ => self.open(fetching.kill.clone())?,
        };
        daemon.pipes.enter(doing, fetching.idle_max);
        let answer = question(&mut daemon.client);
        let words = daemon.pipes.stderr_tail();
        if daemon.client.usable() {
            fetching.daemon = Some(daemon);
        }
        answer.map_err(|error| with_words(format!("the local store, {doing}: {error}"), &words))
    }

    fn permit(&self) -> Permit<'_> {
        // Every holder is bounded by `answer_max`, so this wait is too.
        heartbeat::idle("waiting for its turn with the local store");
        let _ = self.permits.1.recv();
        Permit(&self.permits.0)
    }

    fn keep(&self, daemon: Daemon) {
        if daemon.opened.elapsed() < DAEMON_AGE_MAX {
            lock(&self.idle).push(daemon);
        }
    }

    fn daemon(&self) -> Result<Daemon, String> {
        loop {
            let Some(daemon) = lock(&self.idle).pop() else {
                let kill = KillSwitch::new()
                    .map_err(|error| format!("cannot make a kill switch: {error}"))?;
                return self.open(Arc::new(kill));
            };
            // One that has something to say unasked has ended.
            if daemon.opened.elapsed() < DAEMON_AGE_MAX && !daemon.client.get_ref().is_ready() {
                return Ok(daemon);
            }
        }
    }

    fn open(&self, kill: Arc<KillSwitch>) -> Result<Daemon, String> {
        let (stdin, stdout, stderr, child) = match &self.way {
            Way::Stdio(program) => {
                let (child, ends) = child::spawn(Command::new(program).arg("--stdio"))
                    .map_err(|error| format!("cannot start {program}: {}", plain_error(&error)))?;
                (ends.stdin, ends.stdout, Some(ends.stderr), Some(child))
            }
            Way::Socket(path) => {
                let cannot = |error: io::Error| {
                    format!(
                        "cannot connect to the Nix daemon at {}: {}",
                        path.display(),
                        plain_error(&error)
                    )
                };
                let stream = UnixStream::connect(path).map_err(cannot)?;
                let reader = stream.try_clone().map_err(cannot)?;
                (OwnedFd::from(stream), OwnedFd::from(reader), None, None)
            }
        };
        let (reader, writer, pipes) = pipes::open(stdin, stdout, stderr, kill)
            .map_err(|error| format!("cannot set up pipes: {error}"))?;
        pipes.enter("waiting for its greeting", Duration::from_secs(60));
        match WorkerClient::handshake(reader, writer) {
            Ok(client) => Ok(Daemon {
                client,
                pipes,
                child,
                opened: Instant::now(),
            }),
            Err(error) => {
                pipes.drain_to_end(Duration::from_secs(1));
                let words = pipes.stderr_tail();
                let why = if words.is_empty() {
                    error.to_string()
                } else {
                    words
                };
                Err(format!("cannot open {}: {why}", self.describe()))
            }
        }
    }

    /// Closes conversations that were kept too long.
    pub fn close_stale(&self) {
        let stale: Vec<Daemon> = {
            let mut idle = lock(&self.idle);
            let all = std::mem::take(&mut *idle);
            let (stale, kept) = all
                .into_iter()
                .partition(|daemon| daemon.opened.elapsed() >= DAEMON_AGE_MAX);
            *idle = kept;
            stale
        };
        drop(stale);
    }
}

fn dump_into(tree: &Path, pipe: UnixStream) -> Result<(), NixError> {
    let mut pipe = BufWriter::with_capacity(DUMP_CHUNK_BYTES, pipe);
    nar::dump_path(tree, &mut pipe)?;
    pipe.flush()
        .map_err(|error| NixError::file("send", tree, error))
}

/// A message, and what the daemon said beside it.
fn with_words(message: String, words: &str) -> String {
    if words.is_empty() {
        return message;
    }
    format!("{message}; it said: {words}")
}

/// A conversation with the daemon for what may take long; kept from question to question by whoever asks.
pub struct Fetching {
    kill: Arc<KillSwitch>,
    /// How long the daemon may show no progress.
    idle_max: Duration,
    daemon: Option<Daemon>,
}

impl Fetching {
    /// Ended at once when `kill` is thrown.
    pub fn new(kill: Arc<KillSwitch>, idle_max: Duration) -> Fetching {
        Fetching {
            kill,
            idle_max,
            daemon: None,
        }
    }
}

/// Why a path could not be registered.
#[derive(Debug)]
pub enum ImportError {
    /// Where the bytes came from.
    Source(io::Error),
    /// The local store, in its words.
    Store(String),
}

struct Permit<'a>(&'a Sender<()>);

impl Drop for Permit<'_> {
    fn drop(&mut self) {
        let _ = self.0.send(());
    }
}

impl Cache {
    fn get(&mut self, path: &str) -> Option<Arc<PathMeta>> {
        if let Some(meta) = self.young.get(path) {
            return Some(meta.clone());
        }
        let meta = self.old.get(path)?.clone();
        self.insert(meta.clone());
        Some(meta)
    }

    fn insert(&mut self, meta: Arc<PathMeta>) {
        if self.young.len() >= CACHE_GENERATION {
            self.old = std::mem::take(&mut self.young);
        }
        self.young.insert(meta.path.clone(), meta);
    }
}

fn permits(count: usize) -> (Sender<()>, Receiver<()>) {
    let permits = bounded(count);
    for _ in 0..count {
        // There is room for exactly these.
        let _ = permits.0.send(());
    }
    permits
}
