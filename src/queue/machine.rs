//! The machines as the process knows them: names to ids, configuration, kept connections, slot threads.

use std::collections::HashMap;
use std::io::Write;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, RwLock};
use std::time::{Duration, Instant};

use crossbeam_channel::{bounded, Receiver, Sender};

use super::connection::{self, Asked, Connection, Deadlines, Programs, Trouble};
use super::sender::SendThread;
use super::slot::SlotThreads;
use crate::base::lock::{lock, read, write};
use crate::config::machines::MachineLine;
use crate::model::MachineId;
use crate::sys::heartbeat;
use crate::sys::kill::KillSwitch;
use crate::sys::thread;

/// Handshakes under way at once with one host: sshd refuses more than a few (MaxStartups).
const HANDSHAKES_MAX: usize = 4;
/// Query connections of a machine: those that may wait for its substituters.
const QUERIES_MAX: usize = 2;
/// How long a machine's version of Nix is believed.
const VERSION_BELIEVED: Duration = Duration::from_secs(3600);
/// How long [`Machine::quick_connection`] waits for an answer.
const QUICK_CONNECT: Duration = Duration::from_secs(10);

/// How long connections are kept.
#[derive(Clone, Copy, Debug)]
pub struct Keeping {
    pub idle_max: Duration,
    pub age_max: Duration,
}

/// How all machines are talked to.
pub struct Ways {
    pub deadlines: Deadlines,
    pub keeping: Keeping,
    pub programs: Programs,
    /// Where host keys of the machines file are written for ssh.
    pub key_dir: PathBuf,
}

/// A machine ever seen in a machines file.
pub struct Machine {
    pub id: MachineId,
    pub name: String,
    line: RwLock<Arc<MachineLine>>,
    ways: Arc<Ways>,
    /// Build connections without a step, the last used at the end.
    idle: Mutex<Vec<Connection>>,
    /// Query connections, which never carry a build request.
    idle_queries: Mutex<Vec<Connection>>,
    handshakes: Tokens,
    queries: Tokens,
    /// Whether its Nix builds a step again when it is told to, and when that was asked.
    repeats: Mutex<Option<(Instant, bool)>>,
    /// A connection is being opened ahead of the next step.
    warming: AtomicBool,
    /// A step has gone there since [`Machine::take_used`].
    used: AtomicBool,
    facts: Mutex<Facts>,
    pub slots: SlotThreads,
    pub sender: SendThread,
}

/// What a machine has said of itself; see `room`.
#[derive(Clone, Default, Debug)]
pub struct Facts {
    pub nix_version: Option<String>,
    /// Where its store is.
    pub free_bytes: Option<u64>,
}

/// A fixed number of permits.
struct Tokens {
    give: Sender<()>,
    take: Receiver<()>,
}

/// A permit; given back when dropped.
pub struct Token(Sender<()>);

impl Tokens {
    fn new(count: usize) -> Tokens {
        let (give, take) = bounded(count);
        for _ in 0..count {
            // The channel has room for exactly these.
            let _ = give.send(());
        }
        Tokens { give, take }
    }

    /// Waits for a permit, a while at a time, so that a thrown switch is noticed.
    fn take(&self, kill: &KillSwitch, until: Option<Instant>) -> Option<Token> {
        heartbeat::idle("waiting for its turn to connect");
        loop {
            if self.take.recv_timeout(Duration::from_millis(200)).is_ok() {
                return Some(Token(self.give.clone()));
            }
            if kill.is_thrown() || until.is_some_and(|until| Instant::now() >= until) {
                return None;
            }
        }
    }
}

impl Drop for Token {
    fn drop(&mut self) {
        let _ = self.0.send(());
    }
}

impl Machine {
    fn new(id: MachineId, line: Arc<MachineLine>, ways: Arc<Ways>) -> Machine {
        Machine {
            id,
            name: line.name.clone(),
            line: RwLock::new(line),
            ways,
            idle: Mutex::default(),
            idle_queries: Mutex::default(),
            handshakes: Tokens::new(HANDSHAKES_MAX),
            queries: Tokens::new(QUERIES_MAX),
            repeats: Mutex::default(),
            warming: AtomicBool::new(false),
            used: AtomicBool::new(false),
            facts: Mutex::default(),
            slots: SlotThreads::default(),
            sender: SendThread::default(),
        }
    }

    pub fn line(&self) -> Arc<MachineLine> {
        read(&self.line).clone()
    }

    /// Takes a new line of the machines file; connections made by the old one are not used again.
    fn set_line(&self, line: Arc<MachineLine>) {
        let changed = {
            let mut current = write(&self.line);
            let changed = !leads_to_the_same(&current, &line);
            *current = line;
            changed
        };
        if changed {
            *lock(&self.repeats) = None;
            self.close_idle(|_| true);
        }
    }

    /// How long a thread of this machine stays without work: as long as its connection would.
    pub fn thread_idle_max(&self) -> Duration {
        self.ways.keeping.idle_max.max(Duration::from_secs(1))
    }

    pub fn deadlines(&self) -> &Deadlines {
        &self.ways.deadlines
    }

    /// A build connection: a kept one if there is a good one (then `false`), else a new one (`true`).
    ///
    /// # Errors
    /// As [`Connection::open`].
    pub fn build_connection(&self, kill: &Arc<KillSwitch>) -> Result<Connection, Trouble> {
        self.used.store(true, Ordering::Relaxed);
        match self.take_idle(&self.idle, kill) {
            Some(connection) => Ok(connection),
            None => self.open(kill),
        }
    }

    /// Whether a step has gone there since this was asked last.
    pub fn take_used(&self) -> bool {
        self.used.swap(false, Ordering::Relaxed)
    }

    pub fn facts(&self) -> Facts {
        lock(&self.facts).clone()
    }

    pub fn learn(&self, learn: impl FnOnce(&mut Facts)) {
        learn(&mut lock(&self.facts));
    }

    /// Whether a kept connection waits (it may still turn out to be stale).
    pub fn has_idle_connection(&self) -> bool {
        !lock(&self.idle).is_empty()
    }

    /// A query connection with its permit. `Ok(None)`: all are busy until `until`.
    ///
    /// # Errors
    /// As [`Connection::open`].
    pub fn query_connection(
        &self,
        kill: &Arc<KillSwitch>,
        until: Instant,
    ) -> Result<Option<(Connection, Token)>, Trouble> {
        let Some(token) = self.queries.take(kill, Some(until)) else {
            return if kill.is_thrown() {
                Err(Trouble::Killed)
            } else {
                Ok(None)
            };
        };
        let connection = match self.take_idle(&self.idle_queries, kill) {
            Some(connection) => connection,
            None => self.open(kill)?,
        };
        Ok(Some((connection, token)))
    }

    pub fn give_back(&self, mut connection: Connection) {
        connection.touch();
        lock(&self.idle).push(connection);
    }

    pub fn give_back_query(&self, mut connection: Connection) {
        connection.touch();
        lock(&self.idle_queries).push(connection);
    }

    fn take_idle(
        &self,
        idle: &Mutex<Vec<Connection>>,
        kill: &Arc<KillSwitch>,
    ) -> Option<Connection> {
        loop {
            // A stale one is dropped (which may wait for its process) after the lock is given up.
            let connection = lock(idle).pop()?;
            if connection.is_reusable(self.ways.keeping.idle_max, self.ways.keeping.age_max) {
                connection.pipes.set_kill_switch(kill.clone());
                return Some(connection);
            }
        }
    }

    /// A new build connection to a machine that must answer soon: whoever waits can also do without it.
    ///
    /// # Errors
    /// As [`Connection::open`].
    pub fn quick_connection(&self, kill: &Arc<KillSwitch>) -> Result<Connection, Trouble> {
        self.open_within(kill, QUICK_CONNECT)
    }

    fn open(&self, kill: &Arc<KillSwitch>) -> Result<Connection, Trouble> {
        self.open_within(kill, Duration::MAX)
    }

    fn open_within(
        &self,
        kill: &Arc<KillSwitch>,
        connect_max: Duration,
    ) -> Result<Connection, Trouble> {
        let _token = self.handshakes.take(kill, None).ok_or(Trouble::Killed)?;
        let line = self.line();
        let known_hosts = self.known_hosts(&line)?;
        Connection::open(
            &line,
            &self.ways.programs,
            known_hosts.as_deref(),
            &Deadlines {
                connect: self.ways.deadlines.connect.min(connect_max),
                ..self.ways.deadlines
            },
            kill.clone(),
        )
    }

    /// Runs a short command on the machine, the way its store is reached.
    ///
    /// # Errors
    /// As [`connection::ask`].
    pub fn ask(
        &self,
        kill: &Arc<KillSwitch>,
        patience: Duration,
        asked: Asked<'_>,
    ) -> Result<String, Trouble> {
        let _token = self.handshakes.take(kill, None).ok_or(Trouble::Killed)?;
        let line = self.line();
        let known_hosts = self.known_hosts(&line)?;
        connection::ask(
            &line,
            &self.ways.programs,
            known_hosts.as_deref(),
            patience,
            kill.clone(),
            asked,
        )
    }

    /// Whether its Nix can build a step again and compare; newer ones end the conversation when they are told to. What
    /// it says is believed for a while.
    ///
    /// # Errors
    /// When it cannot be asked.
    pub fn can_repeat(&self, kill: &Arc<KillSwitch>) -> Result<bool, Trouble> {
        let known = *lock(&self.repeats);
        if let Some((_, can)) = known.filter(|(asked, _)| asked.elapsed() < VERSION_BELIEVED) {
            return Ok(can);
        }
        let said = self.ask(kill, self.deadlines().connect, Asked::NixVersion)?;
        let said = said.lines().next().unwrap_or_default().trim();
        let can = repeats_builds(said);
        if !can {
            log::warn!(
                "'{}' has {said}, which cannot build a step again: it builds once",
                self.name
            );
        }
        *lock(&self.repeats) = Some((Instant::now(), can));
        Ok(can)
    }

    /// Opens a connection to this host ahead of the next step, if none waits: starting `nix-store` costs as much as a
    /// small build. Remote machines are left alone until there is something to build.
    pub fn warm_up(self: &Arc<Self>) {
        let line = self.line();
        if !line.is_localhost || line.slots == 0 || self.has_idle_connection() {
            return;
        }
        if self.warming.swap(true, Ordering::SeqCst) {
            return;
        }
        let machine = self.clone();
        let spawned = thread::spawn(format!("warm-{}", self.name), move || {
            let opened = KillSwitch::new()
                .map_err(|error| Trouble::Ours(error.to_string()))
                .and_then(|kill| machine.open(&Arc::new(kill)));
            match opened {
                Ok(connection) => lock(&machine.idle).push(connection),
                // The step that finds none says what is wrong.
                Err(trouble) => log::debug!("no connection ahead of a step: {trouble:?}"),
            }
            machine.warming.store(false, Ordering::SeqCst);
        });
        if spawned.is_err() {
            self.warming.store(false, Ordering::SeqCst);
        }
    }

    /// Writes the host key of the machines file where ssh can read it.
    fn known_hosts(&self, line: &MachineLine) -> Result<Option<PathBuf>, Trouble> {
        let (Some(key), false) = (&line.host_key, line.is_localhost) else {
            return Ok(None);
        };
        let path = self.ways.key_dir.join(format!("host-key-{}", self.id));
        let text = format!("{} {}\n", known_hosts_name(line), key.trim());
        if std::fs::read_to_string(&path).is_ok_and(|old| old == text) {
            return Ok(Some(path));
        }
        let write = || -> std::io::Result<()> {
            std::fs::create_dir_all(&self.ways.key_dir)?;
            let mut file = tempfile_beside(&path)?;
            file.1.write_all(text.as_bytes())?;
            std::fs::rename(&file.0, &path)
        };
        write()
            .map_err(|error| Trouble::Ours(format!("cannot write {}: {error}", path.display())))?;
        Ok(Some(path))
    }

    /// Closes kept connections that are too old, or all.
    pub fn close_stale(&self) {
        let keeping = self.ways.keeping;
        self.close_idle(|connection| !connection.is_reusable(keeping.idle_max, keeping.age_max));
    }

    pub fn close_all(&self) {
        self.close_idle(|_| true);
    }

    fn close_idle(&self, stale: impl Fn(&Connection) -> bool) {
        for idle in [&self.idle, &self.idle_queries] {
            let closed: Vec<Connection> = {
                let mut idle = lock(idle);
                let all = std::mem::take(&mut *idle);
                let (closed, kept) = all.into_iter().partition(&stale);
                *idle = kept;
                closed
            };
            drop(closed);
        }
    }
}

/// Nix could repeat a build up to 2.12: what it says of itself is like `nix-store (Nix) 2.8.0`.
fn repeats_builds(version: &str) -> bool {
    let Some((_, number)) = version.rsplit_once("(Nix) ") else {
        return false;
    };
    let mut parts = number.split(|c: char| !c.is_ascii_digit());
    let mut part = || parts.next()?.parse::<u32>().ok();
    matches!((part(), part()), (Some(2), Some(minor)) if minor < 13)
}

/// Whether connections made by one line may be used for the other.
fn leads_to_the_same(a: &MachineLine, b: &MachineLine) -> bool {
    (
        &a.host,
        &a.user,
        a.port,
        a.is_localhost,
        &a.remote_store,
        &a.ssh_key,
        &a.host_key,
    ) == (
        &b.host,
        &b.user,
        b.port,
        b.is_localhost,
        &b.remote_store,
        &b.ssh_key,
        &b.host_key,
    )
}

/// The host as ssh looks it up in a known_hosts file.
fn known_hosts_name(line: &MachineLine) -> String {
    match line.port {
        Some(port) if port != 22 => format!("[{}]:{port}", line.host),
        _ => line.host.clone(),
    }
}

/// A new file that will be renamed to `path`.
fn tempfile_beside(path: &std::path::Path) -> std::io::Result<(PathBuf, std::fs::File)> {
    let mut name = path.as_os_str().to_owned();
    name.push(format!(".{:?}.tmp", std::thread::current().id()));
    let name = PathBuf::from(name);
    let file = std::fs::File::create(&name)?;
    Ok((name, file))
}

/// All machines ever seen, by id and by name.
pub struct Registry {
    ways: Arc<Ways>,
    machines: RwLock<Machines>,
}

#[derive(Default)]
struct Machines {
    by_id: Vec<Arc<Machine>>,
    by_name: HashMap<String, MachineId>,
}

impl Registry {
    pub fn new(ways: Ways) -> Registry {
        Registry {
            ways: Arc::new(ways),
            machines: RwLock::default(),
        }
    }

    pub fn programs(&self) -> &Programs {
        &self.ways.programs
    }

    /// The machine of this name, made if it is new, with this configuration.
    pub fn configure(&self, line: &Arc<MachineLine>) -> MachineId {
        let mut machines = write(&self.machines);
        if let Some(&id) = machines.by_name.get(&line.name) {
            let machine = machines.by_id[id.0 as usize].clone();
            drop(machines);
            machine.set_line(line.clone());
            return id;
        }
        let id = MachineId(machines.by_id.len() as u32);
        let machine = Machine::new(id, line.clone(), self.ways.clone());
        machines.by_name.insert(machine.name.clone(), id);
        machines.by_id.push(Arc::new(machine));
        id
    }

    pub fn get(&self, id: MachineId) -> Option<Arc<Machine>> {
        read(&self.machines).by_id.get(id.0 as usize).cloned()
    }

    /// The machine that a row's `machine` means.
    pub fn recorded_as(&self, name: &str) -> Option<Arc<Machine>> {
        let machines = self.all();
        let named = machines.iter().find(|machine| machine.name == name);
        let alike = || {
            machines
                .iter()
                .find(|machine| machine.line().is_recorded_as(name))
        };
        named.or_else(alike).cloned()
    }

    pub fn name(&self, id: MachineId) -> String {
        self.get(id)
            .map_or_else(String::new, |machine| machine.name.clone())
    }

    pub fn all(&self) -> Vec<Arc<Machine>> {
        read(&self.machines).by_id.clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn which_nix_repeats_a_build() {
        for (version, can) in [
            ("nix-store (Nix) 2.8.0", true),
            ("nix-store (Nix) 2.3.16", true),
            ("nix-store (Nix) 2.12.1", true),
            ("nix-store (Nix) 2.13.0", false),
            ("nix-store (Nix) 2.26.3+dfsg-1", false),
            ("nix-store (Nix) 3.0", false),
            ("nix-store (Lix, like Nix) 2.91.1", false),
            ("nix-store (Nix) two", false),
            ("", false),
        ] {
            assert_eq!(repeats_builds(version), can, "{version}");
        }
    }
}
