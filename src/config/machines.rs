//! The machines file: which build hosts there are and what they can do.
//!
//! Knows the syntax of Nix's machines file as Hydra reads it, which files to read, and how to see
//! that they changed. Does not know whether a machine is reachable, and does not decide whether a
//! shrunken list is to be believed (but see [`shrank`]).
//!
//! One machine per line, columns separated by blanks, `-` for "not given":
//!
//! ```text
//! name systems ssh-key slots speed-factor supported-features mandatory-features host-key
//! ```
//!
//! `#` starts a comment, `;` separates machines like a line end, `@/path` includes a file. Mandatory
//! features count as supported. A wrong line is reported and the others work.

use std::collections::{BTreeSet, HashSet};
use std::fmt;
use std::fs;
use std::io;
use std::net::Ipv6Addr;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use crate::base::text::percent_decoded;

/// Includes within includes.
pub const INCLUDE_DEPTH_MAX: usize = 16;
/// Files read for one list of machines, counting a file each time it is included.
pub const INCLUDES_MAX: usize = 256;
/// Bytes of one file.
pub const FILE_BYTES_MAX: usize = 16 << 20;
/// Slots of one machine; more is taken for a slip of the keyboard.
pub const SLOTS_MAX: u32 = 65_536;

/// A machine as the file describes it.
#[derive(Clone, PartialEq, Debug)]
pub struct MachineLine {
    /// The first column, verbatim: what `BuildSteps.machine` shows and what identifies a machine.
    pub name: String,
    /// What ssh connects to, without scheme, user, port and parameters; IPv6 without brackets.
    pub host: String,
    pub user: Option<String>,
    pub port: Option<u16>,
    /// Served by a local `nix-store` instead of ssh.
    pub is_localhost: bool,
    /// `?remote-store=`: the store on the machine that is to be used.
    pub remote_store: Option<String>,
    /// `?remote-program=`: what to start there instead of `nix-store`.
    pub remote_program: Option<String>,
    /// `?compress=true`: compress the ssh connection.
    pub compress: bool,
    /// System types; empty means that the machine can run nothing.
    pub systems: BTreeSet<String>,
    pub ssh_key: Option<PathBuf>,
    /// How many steps run there at once; may be 0.
    pub slots: u32,
    /// Above 0 and finite.
    pub speed_factor: f64,
    /// Mandatory features included.
    pub supported: BTreeSet<String>,
    /// Only steps that require all of these run there.
    pub mandatory: BTreeSet<String>,
    /// The decoded line for a known_hosts file, key type first, without the host name.
    pub host_key: Option<String>,
    /// From 1; 0 for the implicit localhost.
    pub line_no: u32,
    /// Empty for the implicit localhost.
    pub file: PathBuf,
}

impl MachineLine {
    /// What is given to ssh: `user@host` or `host`.
    pub fn ssh_target(&self) -> String {
        match &self.user {
            Some(user) => format!("{user}@{}", self.host),
            None => self.host.clone(),
        }
    }

    /// Where the machine keeps the paths of this store; `None` if that cannot be told from its line.
    pub fn store_folder(&self, store_dir: &str) -> Option<String> {
        match self.remote_store.as_deref() {
            _ if self.is_localhost => Some(store_dir.to_owned()),
            None | Some("" | "auto" | "daemon" | "local") => Some(store_dir.to_owned()),
            Some(root) if root.starts_with('/') && !root.contains('?') => {
                Some(format!("{}{store_dir}", root.trim_end_matches('/')))
            }
            Some(_) => None,
        }
    }
}

impl MachineLine {
    /// Whether rows of `BuildSteps` with this machine are about this one. The first column verbatim is what hydrad and
    /// Hydra of 2022 write; later releases wrote the address as Nix renders it, `ssh://user@host`.
    pub fn is_recorded_as(&self, name: &str) -> bool {
        self.name == name || address(&self.name) == address(name)
    }
}

/// A machine's address without scheme and parameters.
fn address(name: &str) -> &str {
    let name = name
        .strip_prefix("ssh-ng://")
        .or_else(|| name.strip_prefix("ssh://"))
        .unwrap_or(name);
    name.split('?').next().unwrap_or(name)
}

/// A line that is not understood, or understood with a doubt.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct LineError {
    pub file: PathBuf,
    /// From 1; 0 if it is about the whole file.
    pub line_no: u32,
    pub reason: String,
}

impl fmt::Display for LineError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.line_no {
            0 => write!(f, "{}: {}", self.file.display(), self.reason),
            n => write!(f, "{}:{n}: {}", self.file.display(), self.reason),
        }
    }
}

/// What a machines file, or several, say.
#[derive(Clone, PartialEq, Debug, Default)]
pub struct Machines {
    /// In the order of the files; each name once.
    pub machines: Vec<MachineLine>,
    /// Lines that are left out.
    pub errors: Vec<LineError>,
    /// Lines that work, perhaps not as meant; files that are missing.
    pub warnings: Vec<LineError>,
    /// Included files, also missing ones.
    pub includes: Vec<PathBuf>,
    /// Files whose last line has no end: perhaps still being written.
    pub unfinished: Vec<PathBuf>,
}

/// Why no list of machines can be had at all.
#[derive(Debug, thiserror::Error)]
pub enum MachinesError {
    /// A file exists but cannot be read or looked at.
    #[error("cannot read the machines file {}: {cause}; check its owner and mode", .path.display())]
    Unreadable { path: PathBuf, cause: io::Error },
    /// A file is larger than any list of machines.
    #[error("the machines file {} is larger than {FILE_BYTES_MAX} bytes; is NIX_REMOTE_SYSTEMS right?", .path.display())]
    TooLarge { path: PathBuf },
}

/// Parses one machines file without includes: the good machines, and the lines left out.
pub fn parse(text: &str) -> (Vec<MachineLine>, Vec<LineError>) {
    let none = |_: &Path| Err(io::Error::from(io::ErrorKind::NotFound));
    let parsed = parse_file(Path::new("machines"), text, &none);
    (parsed.machines, parsed.errors)
}

/// Parses the text of `file`; `open` gives the text of included files.
pub fn parse_file(
    file: &Path,
    text: &str,
    open: &dyn Fn(&Path) -> io::Result<Vec<u8>>,
) -> Machines {
    let mut parser = Parser {
        open,
        out: Machines::default(),
        chain: Vec::new(),
        includes_count: 0,
    };
    parser.text(file, text);
    last_wins(&mut parser.out);
    parser.out
}

struct Parser<'a> {
    open: &'a dyn Fn(&Path) -> io::Result<Vec<u8>>,
    out: Machines,
    chain: Vec<PathBuf>,
    includes_count: usize,
}

impl Parser<'_> {
    /// Recursion is bounded by [`INCLUDE_DEPTH_MAX`].
    fn text(&mut self, file: &Path, text: &str) {
        self.chain.push(file.to_owned());
        if !text.is_empty() && !text.ends_with('\n') {
            self.out.unfinished.push(file.to_owned());
        }
        for (index, line) in text.lines().enumerate() {
            let line_no = u32::try_from(index + 1).unwrap_or(u32::MAX);
            let line = line.split('#').next().unwrap_or("");
            for entry in line.split(';').map(str::trim).filter(|e| !e.is_empty()) {
                let note = |reason: String| LineError {
                    file: file.to_owned(),
                    line_no,
                    reason,
                };
                let result = match entry.strip_prefix('@') {
                    Some(path) => self.include(path.trim()),
                    None => machine(entry).map(|(mut machine, doubts)| {
                        machine.file = file.to_owned();
                        machine.line_no = line_no;
                        self.out.machines.push(machine);
                        doubts
                    }),
                };
                match result {
                    Ok(doubts) => self.out.warnings.extend(doubts.into_iter().map(note)),
                    Err(reason) => self.out.errors.push(note(reason)),
                }
            }
        }
        self.chain.pop();
    }

    /// A missing included file is a doubt, as in Nix.
    fn include(&mut self, path: &str) -> Result<Vec<String>, String> {
        let path = PathBuf::from(path);
        if !path.is_absolute() {
            return Err(format!(
                "`@{}`: give the absolute path of the file",
                path.display()
            ));
        }
        if self.chain.contains(&path) || self.chain.len() >= INCLUDE_DEPTH_MAX {
            return Err(format!(
                "`@{}`: the files include each other",
                path.display()
            ));
        }
        self.includes_count += 1;
        if self.includes_count > INCLUDES_MAX {
            return Err(format!("more than {INCLUDES_MAX} files are included"));
        }
        if !self.out.includes.contains(&path) {
            self.out.includes.push(path.clone());
        }
        match (self.open)(&path) {
            Ok(bytes) if bytes.len() > FILE_BYTES_MAX => Err(format!(
                "{} is larger than {FILE_BYTES_MAX} bytes",
                path.display()
            )),
            Ok(bytes) => {
                self.text(&path, &String::from_utf8_lossy(&bytes));
                Ok(Vec::new())
            }
            Err(e) if e.kind() == io::ErrorKind::NotFound => {
                Ok(vec![format!("{} does not exist", path.display())])
            }
            Err(e) => Err(format!("cannot read {}: {e}", path.display())),
        }
    }
}

/// Of machines with one name the last one stays.
fn last_wins(machines: &mut Machines) {
    let mut names = HashSet::new();
    let mut kept = Vec::with_capacity(machines.machines.len());
    for machine in std::mem::take(&mut machines.machines).into_iter().rev() {
        if names.insert(machine.name.clone()) {
            kept.push(machine);
        } else {
            machines.warnings.push(LineError {
                file: machine.file,
                line_no: machine.line_no,
                reason: format!(
                    "machine `{}` is listed again further down; the last line counts",
                    machine.name
                ),
            });
        }
    }
    kept.reverse();
    machines.machines = kept;
}

/// One entry: the machine and doubts about it, or why it is left out.
fn machine(entry: &str) -> Result<(MachineLine, Vec<String>), String> {
    let mut doubts = Vec::new();
    let mut columns = entry.split_whitespace();
    let name = columns.next().unwrap_or("").to_owned();
    let mut column = || columns.next().filter(|c| *c != "-");
    let target = target(&name, &mut doubts)?;

    let systems = words(column());
    if systems.is_empty() {
        doubts.push(format!(
            "machine `{name}` has no system types (second column) and can run nothing"
        ));
    }
    let ssh_key = column().map(PathBuf::from).or(target.ssh_key);
    let slots = match column() {
        None => 1,
        Some(text) => text
            .parse::<u32>()
            .ok()
            .filter(|n| *n <= SLOTS_MAX)
            .ok_or_else(|| {
                format!(
                    "machine `{name}`: number of slots (fourth column) is `{text}`, \
                     expected a whole number up to {SLOTS_MAX}"
                )
            })?,
    };
    let speed_factor = match column() {
        None => 1.0,
        Some(text) => text
            .parse::<f64>()
            .ok()
            .filter(|f| f.is_finite() && *f >= 0.0)
            .ok_or_else(|| {
                format!(
                    "machine `{name}`: speed factor (fifth column) is `{text}`, \
                     expected a number above 0"
                )
            })?,
    };
    let mut supported = words(column());
    let mandatory = words(column());
    supported.extend(mandatory.iter().cloned());
    let host_key =
        match column() {
            None => target.host_key,
            Some(text) => Some(host_key(text).map_err(|reason| {
                format!("machine `{name}`: host key (eighth column): {reason}")
            })?),
        };
    if let Some(more) = columns.next() {
        doubts.push(format!(
            "machine `{name}`: `{more}` after the eighth column is not used"
        ));
    }

    let machine = MachineLine {
        name,
        host: target.host,
        user: target.user,
        port: target.port,
        is_localhost: target.is_localhost,
        remote_store: target.remote_store,
        remote_program: target.remote_program,
        compress: target.compress,
        systems,
        ssh_key,
        slots,
        // Nix takes 0 for 1 as well.
        speed_factor: if speed_factor == 0.0 {
            1.0
        } else {
            speed_factor
        },
        supported,
        mandatory,
        host_key,
        line_no: 0,
        file: PathBuf::new(),
    };
    Ok((machine, doubts))
}

fn words(column: Option<&str>) -> BTreeSet<String> {
    let words = column.unwrap_or("").split(',').map(str::trim);
    words.filter(|w| !w.is_empty()).map(str::to_owned).collect()
}

/// What the first column says.
#[derive(Default)]
struct Target {
    host: String,
    user: Option<String>,
    port: Option<u16>,
    is_localhost: bool,
    remote_store: Option<String>,
    remote_program: Option<String>,
    compress: bool,
    ssh_key: Option<PathBuf>,
    host_key: Option<String>,
}

fn target(name: &str, doubts: &mut Vec<String>) -> Result<Target, String> {
    let (uri, parameters) = match name.split_once('?') {
        Some((uri, parameters)) => (uri, parameters),
        None => (name, ""),
    };
    let mut target = Target::default();
    for parameter in parameters.split('&').filter(|p| !p.is_empty()) {
        let (key, value) = parameter.split_once('=').unwrap_or((parameter, ""));
        let value = percent_decoded(value).map_err(|reason| {
            format!(
                "machine `{name}`: parameter `{parameter}` is not percent-encoded text: {reason}"
            )
        })?;
        match key {
            "remote-store" => target.remote_store = Some(value),
            "remote-program" => target.remote_program = Some(value),
            "ssh-key" => target.ssh_key = Some(PathBuf::from(value)),
            "compress" => target.compress = matches!(value.as_str(), "true" | "1"),
            "base64-ssh-public-host-key" => {
                let key = host_key(&value)
                    .map_err(|reason| format!("machine `{name}`: host key: {reason}"))?;
                target.host_key = Some(key);
            }
            "max-connections" | "max-connection-age" => doubts.push(format!(
                "machine `{name}`: parameter `{key}` is not used; hydrad opens one connection \
                 per busy slot"
            )),
            _ => doubts.push(format!(
                "machine `{name}`: parameter `{key}` is unknown and not used"
            )),
        }
    }

    let authority = match uri.split_once("://") {
        Some(("ssh" | "ssh-ng", rest)) => rest.trim_end_matches('/'),
        Some(("unix" | "local", _)) if parameters.is_empty() => "localhost",
        Some((scheme, _)) => {
            return Err(format!(
                "machine `{name}`: `{scheme}://` is not a way to reach a machine; \
                 use ssh:// or ssh-ng://"
            ));
        }
        None if matches!(uri, "auto" | "daemon" | "local") && parameters.is_empty() => "localhost",
        None => uri,
    };
    if authority.contains('/') {
        return Err(format!(
            "machine `{name}`: a store path or folder is not a machine; use ssh://HOST or localhost"
        ));
    }
    let (user, host) = match authority.rsplit_once('@') {
        Some(("", _)) => return Err(format!("machine `{name}`: no user name before `@`")),
        Some((user, host)) => (Some(user.to_owned()), host),
        None => (None, authority),
    };
    target.user = user;
    let (host, port) = host_and_port(host).map_err(|e| format!("machine `{name}`: {e}"))?;
    target.host = host;
    target.port = port;
    // ssh would take these for options.
    if target.host.starts_with('-') || target.user.as_ref().is_some_and(|u| u.starts_with('-')) {
        return Err(format!(
            "machine `{name}`: a user or host name cannot start with `-`"
        ));
    }
    target.is_localhost = target.host == "localhost"
        && target.user.is_none()
        && target.port.is_none()
        && parameters.is_empty();
    Ok(target)
}

fn host_and_port(text: &str) -> Result<(String, Option<u16>), String> {
    let port = |text: &str| {
        text.parse::<u16>()
            .ok()
            .filter(|p| *p != 0)
            .ok_or_else(|| format!("`{text}` is not a port"))
    };
    if let Some(rest) = text.strip_prefix('[') {
        let (host, rest) = rest
            .split_once(']')
            .ok_or_else(|| "`[` without `]`".to_owned())?;
        if host.is_empty() {
            return Err("no host name".to_owned());
        }
        return match rest.strip_prefix(':') {
            Some(p) => Ok((host.to_owned(), Some(port(p)?))),
            None if rest.is_empty() => Ok((host.to_owned(), None)),
            None => Err(format!("`{rest}` after `]`")),
        };
    }
    if text.is_empty() {
        return Err("no host name".to_owned());
    }
    // A bare IPv6 address, perhaps with a zone.
    let without_zone = text.split('%').next().unwrap_or(text);
    if without_zone.parse::<Ipv6Addr>().is_ok() {
        return Ok((text.to_owned(), None));
    }
    match text.split_once(':') {
        Some(("", _)) => Err("no host name".to_owned()),
        Some((host, p)) => Ok((host.to_owned(), Some(port(p)?))),
        None => Ok((text.to_owned(), None)),
    }
}

/// Decodes `ssh-ed25519 AAAA... comment`, given in base64.
fn host_key(text: &str) -> Result<String, String> {
    let bytes = base64_decoded(text).ok_or("it is not base64")?;
    let key = String::from_utf8(bytes).map_err(|_| {
        "decoded it is not text; encode the line of the .pub file with `base64 -w0`".to_owned()
    })?;
    let key = key.trim();
    if key.is_empty() || key.contains(['\n', '\r', '\0']) {
        return Err("decoded it is not a single line `TYPE KEY`".to_owned());
    }
    Ok(key.to_owned())
}

/// Standard alphabet; padding may be missing.
fn base64_decoded(text: &str) -> Option<Vec<u8>> {
    let text = text.trim_end_matches('=');
    let mut out = Vec::with_capacity(text.len() * 3 / 4);
    let mut bits = 0u32;
    let mut bits_count = 0;
    for b in text.bytes() {
        let value = match b {
            b'A'..=b'Z' => b - b'A',
            b'a'..=b'z' => b - b'a' + 26,
            b'0'..=b'9' => b - b'0' + 52,
            b'+' => 62,
            b'/' => 63,
            _ => return None,
        };
        bits = (bits << 6 | u32::from(value)) & 0xffff;
        bits_count += 6;
        if bits_count >= 8 {
            bits_count -= 8;
            out.push((bits >> bits_count) as u8);
        }
    }
    // A single left-over character encodes nothing.
    (bits_count < 6).then_some(out)
}

/// Whether a new list looks more like an accident than a wish: nothing left, or more than half of
/// the old names gone.
pub fn shrank(old: &[MachineLine], new: &[MachineLine]) -> bool {
    if old.is_empty() {
        return false;
    }
    let names: HashSet<&str> = new.iter().map(|m| m.name.as_str()).collect();
    let lost = old
        .iter()
        .filter(|m| !names.contains(m.name.as_str()))
        .count();
    new.is_empty() || lost * 2 > old.len()
}

/// What the host itself offers when no machines file exists.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct LocalHost {
    pub systems: Vec<String>,
    pub slots: u32,
    /// `system-features` of nix.conf.
    pub features: Vec<String>,
    /// The experimental feature `ca-derivations` is on.
    pub content_addressed: bool,
    /// `extra-platforms` of nix.conf: also built here if a derivation prefers to be.
    pub extra_platforms: Vec<String>,
}

impl LocalHost {
    /// Systems by the CPU this program runs on; slots from `max_jobs` of nix.conf, else one per
    /// CPU.
    pub fn of_this_host(max_jobs: Option<u32>, features: Vec<String>) -> LocalHost {
        let cpus = std::thread::available_parallelism().map_or(1, |n| n.get());
        let systems = match std::env::consts::ARCH {
            "x86_64" => vec!["x86_64-linux".to_owned(), "i686-linux".to_owned()],
            "x86" => vec!["i686-linux".to_owned()],
            "arm" => vec!["armv7l-linux".to_owned()],
            "powerpc64" if cfg!(target_endian = "little") => vec!["powerpc64le-linux".to_owned()],
            arch => vec![format!("{arch}-linux")],
        };
        LocalHost {
            systems,
            slots: max_jobs.unwrap_or_else(|| u32::try_from(cpus).unwrap_or(1)),
            features,
            content_addressed: false,
            extra_platforms: Vec::new(),
        }
    }

    /// Could this host itself build such a derivation? Only then does `preferLocalBuild` count (as in Hydra).
    pub fn could_build(&self, platform: &str, features: &[String]) -> bool {
        let builtin = platform == "builtin";
        let mut platforms = self.systems.iter().chain(&self.extra_platforms);
        (builtin || (self.slots > 0 && platforms.any(|known| known == platform)))
            && features
                .iter()
                .all(|feature| self.features.contains(feature))
    }

    /// The machine called `localhost`.
    pub fn machine(&self) -> MachineLine {
        MachineLine {
            name: "localhost".to_owned(),
            host: "localhost".to_owned(),
            user: None,
            port: None,
            is_localhost: true,
            remote_store: None,
            remote_program: None,
            compress: false,
            systems: self.systems.iter().cloned().collect(),
            ssh_key: None,
            slots: self.slots,
            speed_factor: 1.0,
            supported: self.features.iter().cloned().collect(),
            mandatory: BTreeSet::new(),
            host_key: None,
            line_no: 0,
            file: PathBuf::new(),
        }
    }
}

/// Where the machines come from; decided once, at start.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum MachinesFromEnv {
    /// These files, whether they exist or not.
    Files(Vec<PathBuf>),
    /// No file is named and the default one does not exist.
    ThisHost(LocalHost),
}

/// The files that list the machines, and how they looked when last read.
#[derive(Debug)]
pub struct MachinesFiles {
    pub from: MachinesFromEnv,
    /// Named and included files as of the last successful reading; empty before it.
    stamps: Vec<(PathBuf, Option<Stamp>)>,
    read_once: bool,
}

/// Enough of `stat` to see any ordinary change, also within one second.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Stamp {
    dev: u64,
    ino: u64,
    size: u64,
    mtime: (i64, i64),
    ctime: (i64, i64),
}

impl MachinesFiles {
    /// `nix_remote_systems`: the variable's value, files separated by `:`. Unset or empty means
    /// `default_path` if it exists now, else `local`; a file named but missing means no machines.
    pub fn from_env(
        nix_remote_systems: Option<&str>,
        default_path: &Path,
        local: LocalHost,
    ) -> MachinesFiles {
        let named: Vec<PathBuf> = nix_remote_systems
            .unwrap_or("")
            .split(':')
            .filter(|p| !p.is_empty())
            .map(PathBuf::from)
            .collect();
        let absent = || {
            let looked = fs::metadata(default_path);
            matches!(looked, Err(e) if e.kind() == io::ErrorKind::NotFound)
        };
        let from = if !named.is_empty() {
            MachinesFromEnv::Files(named)
        } else if absent() {
            MachinesFromEnv::ThisHost(local)
        } else {
            MachinesFromEnv::Files(vec![default_path.to_owned()])
        };
        MachinesFiles {
            from,
            stamps: Vec::new(),
            read_once: false,
        }
    }

    /// Whether a file looks different than when [`MachinesFiles::read`] last succeeded.
    pub fn changed(&self) -> Result<bool, MachinesError> {
        if !self.read_once {
            return Ok(true);
        }
        for (path, old) in &self.stamps {
            if stamp(path)? != *old {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Reads all files. A missing one is a warning; one that cannot be read an error, after which
    /// [`MachinesFiles::changed`] stays true.
    pub fn read(&mut self) -> Result<Machines, MachinesError> {
        self.read_once = false;
        let files = match &self.from {
            MachinesFromEnv::ThisHost(local) => {
                self.read_once = true;
                return Ok(Machines {
                    machines: vec![local.machine()],
                    ..Machines::default()
                });
            }
            MachinesFromEnv::Files(files) => files.clone(),
        };
        // Stamps are taken before reading: a change in between is seen again, never missed.
        let mut stamps = Vec::new();
        for path in &files {
            stamps.push((path.clone(), stamp(path)?));
        }
        let included = std::cell::RefCell::new(Vec::new());
        let open = |path: &Path| {
            let before = stamp(path).unwrap_or(None);
            included.borrow_mut().push((path.to_owned(), before));
            fs::read(path)
        };
        let mut parser = Parser {
            open: &open,
            out: Machines::default(),
            chain: Vec::new(),
            includes_count: 0,
        };
        for path in files {
            match fs::read(&path) {
                Ok(bytes) if bytes.len() > FILE_BYTES_MAX => {
                    return Err(MachinesError::TooLarge { path });
                }
                Ok(bytes) => parser.text(&path, &String::from_utf8_lossy(&bytes)),
                Err(e) if e.kind() == io::ErrorKind::NotFound => {
                    parser.out.warnings.push(LineError {
                        file: path,
                        line_no: 0,
                        reason: "the file does not exist; it gives no machines".to_owned(),
                    });
                }
                Err(cause) => return Err(MachinesError::Unreadable { path, cause }),
            }
        }
        let mut out = parser.out;
        last_wins(&mut out);
        stamps.extend(included.into_inner());
        self.stamps = stamps;
        self.read_once = true;
        Ok(out)
    }
}

fn stamp(path: &Path) -> Result<Option<Stamp>, MachinesError> {
    match fs::metadata(path) {
        Ok(m) => Ok(Some(Stamp {
            dev: m.dev(),
            ino: m.ino(),
            size: m.size(),
            mtime: (m.mtime(), m.mtime_nsec()),
            ctime: (m.ctime(), m.ctime_nsec()),
        })),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(cause) => Err(MachinesError::Unreadable {
            path: path.to_owned(),
            cause,
        }),
    }
}
