//! A stub of a build machine: the server side of `nix-store --serve --write` on standard input and output, without a
//! store. It costs so little that a thousand of them fit on a small machine, and it fails on request in every phase.
//!
//! Called as `ssh` it takes the host from the arguments, as any other name it is the host `localhost`; the rest of the
//! arguments is ignored. All paths are valid, a build takes as long as it is told, each output is one small file.
//!
//! Knobs. Each is looked for, every time it matters, as a line `knob=value` in `$STUB_DIR/HOST`, then in `$STUB_DIR/all`,
//! then as the environment variable `STUB_KNOB` (capitals); so a test can change them while machines run.
//!
//! | knob | meaning |
//! |---|---|
//! | `seconds` | how long a build takes (a fraction is allowed); the derivation's `stubSeconds` goes first |
//! | `status` | BuildResult status to answer (0); the derivation's `stubStatus` goes first |
//! | `kib` | size of an output in KiB (a line of text); `stubKiB` goes first |
//! | `say` | a further line of every build's log |
//! | `lines` | lines of log a build writes (1); `stubLogLines` goes first |
//! | `valid` | `all`, or `imported`: only what this connection was sent or has built |
//! | `data` | `own`, or `other`: what is dumped is not what the path's hash was told for |
//! | `clock` | seconds that its clock is fast |
//! | `kept` | what earlier connections built is there: `none` (default) or `all` |
//! | `exec` | run this shell command instead of being a stub |
//! | `free` | KiB that `df` says are free there (104857600) |
//! | `gate` | a build connects to this Unix socket and goes on when the other side closes it |
//! | `fault` | `KIND-in-PHASE`, see below; with `@N` behind it only the first N times on this host |
//!
//! Phases: `connect`, `handshake`, `valid`, `substitute`, `import`, `build`, `infos`, `dump`. Kinds: `hang` (until the
//! client hangs up), `freeze` (deaf to hang-up and SIGTERM, ends after five minutes), `die` (a message, exit code 1),
//! `kill` (SIGKILL), `refuse` (ssh's words for a closed port, exit code 255), `garbage` (text where the answer should be),
//! `half` (begins the answer, then ends), `drip` (the answer byte by byte, or reads an import in small bites).
//! Short names: `garbage-greeting` for `garbage-in-handshake`, `slow-drip` for `drip-in-dump`.
//!
//! `$STUB_LOG` gets a line per event: `HOST PID EVENT DETAIL` with the events connect, import, build, built, dump, fault, end.

use std::collections::HashMap;
use std::io::{self, BufReader, BufWriter, Read, Write};
use std::os::fd::AsRawFd;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use sha2::{Digest, Sha256};

const SERVE_MAGIC_CLIENT: u64 = 0x390c9deb;
const SERVE_MAGIC_SERVER: u64 = 0x5452eecb;
const VERSION: u64 = 0x207;
const EXPORT_MAGIC: u64 = 0x4558494e;
const FREEZE_SECS: u32 = 300;
const DRIP_PAUSE: Duration = Duration::from_millis(20);
const STRING_BYTES_MAX: u64 = 64 << 20;

fn main() {
    let host = host_from_arguments();
    if let Some(command) = knob(&host, "exec") {
        use std::os::unix::process::CommandExt;
        let error = std::process::Command::new("/bin/sh")
            .args(["-c", &command])
            .exec();
        eprintln!("stub-builder: cannot run /bin/sh: {error}");
        std::process::exit(127);
    }
    if let Some(answer) = answer_to_command(&host) {
        print!("{answer}");
        return;
    }
    let mut stub = Stub {
        input: BufReader::with_capacity(16 << 10, io::stdin()),
        output: Output {
            inner: BufWriter::with_capacity(8 << 10, io::stdout()),
            drip: false,
        },
        host,
        minor: 0,
        known: HashMap::new(),
    };
    stub.event("connect", "");
    let result = stub.serve();
    stub.event(
        "end",
        &result
            .as_ref()
            .err()
            .map(|e| e.to_string())
            .unwrap_or_default(),
    );
    if let Err(error) = result {
        eprintln!("error: {error}");
        std::process::exit(1);
    }
}

struct Stub {
    input: BufReader<io::Stdin>,
    output: Output,
    host: String,
    minor: u64,
    /// Paths this connection has imported or built, with their size in KiB.
    known: HashMap<String, u64>,
}

impl Stub {
    fn serve(&mut self) -> io::Result<()> {
        self.fault("connect")?;
        self.fault("handshake")?;
        let magic = self.number()?;
        if magic != SERVE_MAGIC_CLIENT {
            return Err(error(format!("the client's greeting is {magic:#x}")));
        }
        let client = self.number()?;
        self.minor = client.min(VERSION) & 0xff;
        self.put(SERVE_MAGIC_SERVER)?;
        self.put(VERSION)?;
        self.done()?;
        loop {
            let mut first = [0];
            if self.input.read(&mut first)? == 0 {
                return Ok(());
            }
            let mut rest = [0; 8];
            rest[0] = first[0];
            self.input.read_exact(&mut rest[1..])?;
            match u64::from_le_bytes(rest) {
                1 => self.query_valid_paths()?,
                2 => self.query_path_infos()?,
                3 => self.dump_store_path()?,
                4 => self.import_paths()?,
                6 => {
                    self.strings()?;
                    self.settings()?;
                    self.put(0)?;
                }
                7 => {
                    self.number()?;
                    let paths = self.strings()?;
                    self.put_strings(&paths)?;
                }
                8 => self.build_derivation()?,
                9 => self.add_to_store_nar()?,
                other => return Err(error(format!("the stub has no serve command {other}"))),
            }
            self.done()?;
        }
    }

    fn query_valid_paths(&mut self) -> io::Result<()> {
        let _lock = self.number()?;
        let substitute = self.number()? != 0;
        let mut paths = self.strings()?;
        self.fault(if substitute { "substitute" } else { "valid" })?;
        if knob(&self.host, "valid").is_some_and(|v| v == "imported") {
            paths.retain(|path| self.known.contains_key(path));
        }
        self.put_strings(&paths)
    }

    fn query_path_infos(&mut self) -> io::Result<()> {
        let mut paths = self.strings()?;
        self.fault("infos")?;
        if knob(&self.host, "kept").is_none_or(|kept| kept != "all") {
            paths.retain(|path| self.known.contains_key(path));
        }
        for path in &paths {
            let mut hasher = Hasher {
                hash: Sha256::new(),
                size: 0,
            };
            nar(&mut hasher, path, self.kib(path))?;
            self.put_string(path.as_bytes())?;
            self.put_string(b"")?;
            self.put_strings(&[])?;
            self.put(hasher.size)?;
            self.put(hasher.size)?;
            if self.minor >= 4 {
                self.put_string(format!("sha256:{}", base32(&hasher.hash.finalize())).as_bytes())?;
                self.put_string(b"")?;
                self.put_strings(&[])?;
            }
        }
        self.put_string(b"")
    }

    fn dump_store_path(&mut self) -> io::Result<()> {
        let path = self.string()?;
        self.fault("dump")?;
        self.event("dump", &path);
        let kib = self.kib(&path);
        let other = knob(&self.host, "data").is_some_and(|v| v == "other");
        let shown = if other { path.to_uppercase() } else { path };
        nar(&mut self.output, &shown, kib)
    }

    fn import_paths(&mut self) -> io::Result<()> {
        self.fault("import")?;
        while self.number()? == 1 {
            self.skip_nar()?;
            if self.number()? != EXPORT_MAGIC {
                return Err(error("an imported path lacks its magic number".into()));
            }
            let path = self.string()?;
            self.strings()?;
            self.string()?;
            if self.number()? == 1 {
                self.string()?;
            }
            self.event("import", &path);
            self.known.insert(path, 0);
        }
        self.put(1)
    }

    fn add_to_store_nar(&mut self) -> io::Result<()> {
        let path = self.string()?;
        self.string()?; // deriver
        self.string()?; // NAR hash
        self.strings()?; // references
        self.number()?; // registration time
        let size = self.number()?;
        self.number()?; // ultimate
        self.strings()?; // signatures
        self.string()?; // content address
        self.fault("import")?;
        self.skip(size)?;
        self.event("import", &path);
        self.known.insert(path, 0);
        self.put(1)
    }

    fn build_derivation(&mut self) -> io::Result<()> {
        let drv = self.string()?;
        let mut outputs = Vec::new();
        for _ in 0..self.number()? {
            let (name, path) = (self.string()?, self.string()?);
            self.string()?;
            self.string()?;
            outputs.push((name, path));
        }
        self.strings()?; // input sources
        self.string()?; // platform
        self.string()?; // builder
        self.strings()?; // arguments
        let mut told = HashMap::new();
        for _ in 0..self.number()? {
            let (name, value) = (self.string()?, self.string()?);
            if name.starts_with("stub") {
                told.insert(name, value);
            }
        }
        self.settings()?;

        let start = now();
        self.event("build", &drv);
        for line in 0..self
            .setting(&told, "stubLogLines", "lines")
            .map_or(1, |v| v as u64)
        {
            eprintln!("stub line {} of {drv}", line + 1);
        }
        if let Some(words) = knob(&self.host, "say") {
            eprintln!("{words}");
        }
        self.fault("build")?;
        if let Some(gate) = knob(&self.host, "gate") {
            wait_at(&gate)?;
        }
        let seconds = self.setting(&told, "stubSeconds", "seconds").unwrap_or(0.0);
        if seconds > 0.0 && hung_up_within(Duration::from_secs_f64(seconds)) {
            return Err(error("the client hung up during a build".into()));
        }
        let status = self.setting(&told, "stubStatus", "status").unwrap_or(0.0) as u64;
        let kib = self.setting(&told, "stubKiB", "kib").unwrap_or(0.0) as u64;
        self.event("built", &drv);

        let built = status == 0;
        self.put(status)?;
        self.put_string(
            if built {
                String::new()
            } else {
                format!("the stub was told to answer {status}")
            }
            .as_bytes(),
        )?;
        if self.minor >= 3 {
            self.put(built.into())?;
            self.put(0)?;
            let ahead: u64 = knob(&self.host, "clock").map_or(0, |v| v.parse().unwrap_or(0));
            self.put(start + ahead)?;
            self.put(now() + ahead)?;
        }
        if self.minor >= 6 {
            self.put(if built { outputs.len() as u64 } else { 0 })?;
        }
        for (name, path) in outputs {
            if built && self.minor >= 6 {
                let id = format!("sha256:{}!{name}", "0".repeat(64));
                let file = path.rsplit('/').next().unwrap_or(&path);
                self.put_string(id.as_bytes())?;
                let json = format!(
                    r#"{{"dependentRealisations":{{}},"id":"{id}","outPath":"{file}","signatures":[]}}"#
                );
                self.put_string(json.as_bytes())?;
            }
            self.known.insert(path, kib);
        }
        Ok(())
    }

    /// A number the derivation tells, else a knob.
    fn setting(&self, told: &HashMap<String, String>, in_drv: &str, in_knob: &str) -> Option<f64> {
        told.get(in_drv)
            .cloned()
            .or_else(|| knob(&self.host, in_knob))
            .and_then(|value| value.parse().ok())
    }

    fn kib(&self, path: &str) -> u64 {
        let from_knob = || {
            knob(&self.host, "kib")
                .and_then(|value| value.parse().ok())
                .unwrap_or(0)
        };
        self.known.get(path).copied().unwrap_or_else(from_knob)
    }

    fn settings(&mut self) -> io::Result<()> {
        let numbers = 2
            + u64::from(self.minor >= 2)
            + if self.minor >= 3 { 2 } else { 0 }
            + u64::from(self.minor >= 7);
        for _ in 0..numbers {
            self.number()?;
        }
        Ok(())
    }

    // ---- faults

    /// Go wrong here, if the knob says so.
    fn fault(&mut self, phase: &str) -> io::Result<()> {
        self.output.drip = false;
        let Some(wanted) = knob(&self.host, "fault") else {
            return Ok(());
        };
        let (wanted, times) = wanted.split_once('@').unwrap_or((&wanted, ""));
        let wanted = match wanted {
            "garbage-greeting" => "garbage-in-handshake",
            "slow-drip" => "drip-in-dump",
            other => other,
        };
        let Some((kind, at)) = wanted.split_once("-in-") else {
            return Err(error(format!("fault {wanted:?} is not KIND-in-PHASE")));
        };
        if at != phase || times.parse().is_ok_and(|times| self.used_up(times)) {
            return Ok(());
        }
        self.event("fault", wanted);
        match kind {
            "hang" => {
                while !hung_up_within(Duration::from_secs(3600)) {}
                std::process::exit(1);
            }
            "freeze" => freeze(),
            "die" => {
                eprintln!("error: the stub dies in {phase}");
                std::process::exit(1);
            }
            // SAFETY: raise has no preconditions.
            "kill" => unsafe {
                libc::raise(libc::SIGKILL);
            },
            "refuse" => {
                eprintln!(
                    "ssh: connect to host {} port 22: Connection refused",
                    self.host
                );
                std::process::exit(255);
            }
            "garbage" => self
                .output
                .write_all(b"Welcome to this machine! Your mailbox is full.\r\n")?,
            "half" => {
                self.output.write_all(&[0x0c, 0, 0])?;
                self.done()?;
                std::process::exit(1);
            }
            "drip" => self.output.drip = true,
            other => return Err(error(format!("the stub has no fault {other:?}"))),
        }
        Ok(())
    }

    /// Count this fault in `$STUB_DIR/HOST.hits`; have there been `times` before?
    fn used_up(&self, times: u64) -> bool {
        let Some(dir) = std::env::var_os("STUB_DIR") else {
            return false;
        };
        let path = std::path::Path::new(&dir).join(format!("{}.hits", self.host));
        let Ok(mut file) = std::fs::OpenOptions::new()
            .create(true)
            .append(true)
            .open(path)
        else {
            return false;
        };
        let _ = file.write_all(b"x");
        // Where this byte landed: other stubs may append at the same time, each to a place of its own.
        use std::io::Seek;
        file.stream_position().is_ok_and(|place| place > times)
    }

    fn event(&self, event: &str, detail: &str) {
        let Some(path) = std::env::var_os("STUB_LOG") else {
            return;
        };
        let line = format!("{} {} {event} {detail}\n", self.host, std::process::id());
        if let Ok(mut file) = std::fs::OpenOptions::new()
            .create(true)
            .append(true)
            .open(path)
        {
            let _ = file.write_all(line.as_bytes());
        }
    }

    // ---- the wire

    fn number(&mut self) -> io::Result<u64> {
        let mut bytes = [0; 8];
        self.input.read_exact(&mut bytes)?;
        Ok(u64::from_le_bytes(bytes))
    }

    fn string(&mut self) -> io::Result<String> {
        let length = self.number()?;
        if length > STRING_BYTES_MAX {
            return Err(error(format!("a string of {length} bytes")));
        }
        let mut bytes = vec![0; length as usize];
        self.input.read_exact(&mut bytes)?;
        self.input.read_exact(&mut [0; 7][..padding(length)])?;
        Ok(String::from_utf8_lossy(&bytes).into_owned())
    }

    fn strings(&mut self) -> io::Result<Vec<String>> {
        (0..self.number()?).map(|_| self.string()).collect()
    }

    fn put(&mut self, number: u64) -> io::Result<()> {
        put(&mut self.output, number)
    }

    fn put_string(&mut self, bytes: &[u8]) -> io::Result<()> {
        put_string(&mut self.output, bytes)
    }

    fn put_strings(&mut self, strings: &[String]) -> io::Result<()> {
        self.put(strings.len() as u64)?;
        strings
            .iter()
            .try_for_each(|string| self.put_string(string.as_bytes()))
    }

    fn done(&mut self) -> io::Result<()> {
        self.output.flush()?;
        self.output.drip = false;
        Ok(())
    }

    /// Read and forget.
    fn skip(&mut self, bytes: u64) -> io::Result<()> {
        let mut left = bytes;
        let mut buffer = [0; 4096];
        while left > 0 {
            let bite = left.min(if self.output.drip { 64 } else { 4096 }) as usize;
            self.input.read_exact(&mut buffer[..bite])?;
            left -= bite as u64;
            if self.output.drip {
                std::thread::sleep(DRIP_PAUSE);
            }
        }
        Ok(())
    }

    fn skip_nar(&mut self) -> io::Result<()> {
        if self.string()? != "nix-archive-1" {
            return Err(error("an imported NAR does not begin as one".into()));
        }
        self.skip_node()
    }

    fn skip_node(&mut self) -> io::Result<()> {
        loop {
            match self.string()?.as_str() {
                "(" | "type" | "regular" | "symlink" | "directory" => (),
                "executable" | "target" => drop(self.string()?),
                "contents" => {
                    let length = self.number()?;
                    self.skip(length + padding(length) as u64)?;
                }
                "entry" => {
                    for _ in 0..4 {
                        self.string()?; // ( name NAME node
                    }
                    self.skip_node()?;
                    self.string()?; // )
                }
                ")" => return Ok(()),
                other => return Err(error(format!("{other:?} in a NAR"))),
            }
        }
    }
}

/// Standard output; byte by byte if it shall drip.
struct Output {
    inner: BufWriter<io::Stdout>,
    drip: bool,
}

impl Write for Output {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if !self.drip || bytes.is_empty() {
            return self.inner.write(bytes);
        }
        self.inner.write_all(&bytes[..1])?;
        self.inner.flush()?;
        std::thread::sleep(DRIP_PAUSE);
        Ok(1)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()?;
        io::stdout().flush()
    }
}

struct Hasher {
    hash: Sha256,
    size: u64,
}

impl Write for Hasher {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.hash.update(bytes);
        self.size += bytes.len() as u64;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// The one file an output is: a line of text, or as many KiB of zeros.
fn nar(out: &mut impl Write, path: &str, kib: u64) -> io::Result<()> {
    for word in ["nix-archive-1", "(", "type", "regular", "contents"] {
        put_string(out, word.as_bytes())?;
    }
    if kib == 0 {
        put_string(
            out,
            format!("stub output {}\n", path.rsplit('/').next().unwrap_or(path)).as_bytes(),
        )?;
    } else {
        put(out, kib << 10)?;
        (0..kib).try_for_each(|_| out.write_all(&[0; 1024]))?;
    }
    put_string(out, b")")
}

fn put(out: &mut impl Write, number: u64) -> io::Result<()> {
    out.write_all(&number.to_le_bytes())
}

fn put_string(out: &mut impl Write, bytes: &[u8]) -> io::Result<()> {
    put(out, bytes.len() as u64)?;
    out.write_all(bytes)?;
    out.write_all(&[0; 7][..padding(bytes.len() as u64)])
}

fn padding(length: u64) -> usize {
    (length.wrapping_neg() % 8) as usize
}

fn base32(hash: &[u8]) -> String {
    const ALPHABET: &[u8; 32] = b"0123456789abcdfghijklmnpqrsvwxyz";
    let digits = (hash.len() * 8).div_ceil(5);
    (0..digits)
        .rev()
        .map(|n| {
            let (byte, shift) = (n * 5 / 8, n * 5 % 8);
            let pair = u16::from(hash[byte]) | u16::from(*hash.get(byte + 1).unwrap_or(&0)) << 8;
            ALPHABET[(pair >> shift & 31) as usize] as char
        })
        .collect()
}

/// The first argument that is not an option, if we are called ssh.
fn host_from_arguments() -> String {
    let mut args = std::env::args();
    let name = args.next().unwrap_or_default();
    if name.rsplit('/').next() != Some("ssh") {
        return "localhost".into();
    }
    while let Some(arg) = args.next() {
        match arg.strip_prefix('-') {
            None => return arg.rsplit('@').next().unwrap_or_default().into(),
            // Options of ssh whose value is the next word.
            Some(letter) if letter.len() == 1 && "BbcDEeFIiJLlmOopQRSWw".contains(letter) => {
                drop(args.next())
            }
            Some(_) => (),
        }
    }
    "nowhere".into()
}

/// What is printed where no store is asked for: `nix-store --version`, `nix-store --delete`, `df`.
fn answer_to_command(host: &str) -> Option<String> {
    let words: Vec<String> = std::env::args().collect();
    let has = |wanted: &str| words.iter().any(|word| word == wanted);
    if has("--version") {
        Some("nix-store (Nix) 2.8.1\n".into())
    } else if has("--delete") {
        Some(String::new())
    } else if has("df") {
        let free = knob(host, "free").unwrap_or_else(|| "104857600".into());
        Some(format!(
            "Filesystem 1024-blocks Used Available Capacity Mounted on\n/dev/stub 209715200 1 {free} 1% /\n"
        ))
    } else {
        None
    }
}

fn knob(host: &str, name: &str) -> Option<String> {
    let from_file = |file: &str| {
        let dir = std::env::var_os("STUB_DIR")?;
        let text = std::fs::read_to_string(std::path::Path::new(&dir).join(file)).ok()?;
        text.lines()
            .find_map(|line| Some(line.strip_prefix(name)?.strip_prefix('=')?.to_string()))
    };
    let value = from_file(host).or_else(|| from_file("all"));
    value
        .or_else(|| std::env::var(format!("STUB_{}", name.to_uppercase())).ok())
        .filter(|value| !value.is_empty())
}

/// Wait; true if the client closed our standard input meanwhile.
fn hung_up_within(time: Duration) -> bool {
    let deadline = std::time::Instant::now() + time;
    loop {
        let left = deadline.saturating_duration_since(std::time::Instant::now());
        let mut stdin = libc::pollfd {
            fd: 0,
            events: 0,
            revents: 0,
        };
        let millis = left.as_millis().min(i32::MAX as u128) as i32 + i32::from(!left.is_zero());
        // SAFETY: one pollfd that lives until poll returns.
        let ready = unsafe { libc::poll(&mut stdin, 1, millis) };
        if ready > 0 {
            return true;
        }
        if left.is_zero() {
            return false;
        }
    }
}

/// Wait until whoever listens at the socket hangs up. Nobody listens: the gate is open.
fn wait_at(gate: &str) -> io::Result<()> {
    let Ok(stream) = std::os::unix::net::UnixStream::connect(gate) else {
        return Ok(());
    };
    let mut ends = [0, stream.as_raw_fd()].map(|fd| libc::pollfd {
        fd,
        events: libc::POLLIN,
        revents: 0,
    });
    // Any event of standard input while a build runs is the client hanging up.
    ends[0].events = 0;
    // SAFETY: two pollfds that live until poll returns.
    unsafe { libc::poll(ends.as_mut_ptr(), 2, -1) };
    match ends[0].revents {
        0 => Ok(()),
        _ => Err(error("the client hung up during a build".into())),
    }
}

fn freeze() {
    // SAFETY: SIG_IGN runs no code of ours, alarm and pause have no preconditions.
    unsafe {
        for signal in [libc::SIGTERM, libc::SIGINT, libc::SIGHUP, libc::SIGPIPE] {
            libc::signal(signal, libc::SIG_IGN);
        }
        libc::alarm(FREEZE_SECS);
        loop {
            libc::pause();
        }
    }
}

fn now() -> u64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |time| time.as_secs())
}

fn error(text: String) -> io::Error {
    io::Error::other(text)
}
