//! One evaluating process: started, spoken to line by line, watched, ended. Knows no job.

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::process::{ChildStderr, ChildStdin, Command};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use crossbeam_channel::{bounded, Receiver, RecvTimeoutError, Sender};

use super::protocol::{self, Heard, ARGUMENTS};
use super::{words, EvalError, Request};
use crate::base::text;
use crate::eval::harmless::with_harmless_git;
use crate::eval::job::{Argument, Source};
use crate::nix::expression;
use crate::nix::hash::hex_encode;
use crate::sys::child::{self, describe_status, plain_error, PipedChild};
use crate::sys::process;

/// How often memory, deadline and the wish to stop are looked at.
const LOOK_EVERY: Duration = Duration::from_millis(20);
/// Lines that are read ahead of whoever takes them. More stay in the pipe, and the process waits.
const LINES_AHEAD: usize = 1_024;
/// Bytes of a line; what is longer is cut, and is no answer of ours then.
const LINE_BYTES_MAX: usize = 16 << 20;
/// Bytes of Nix's words about one attribute that are kept, the last ones.
const WORDS_BYTES_MAX: usize = 64 << 10;
/// How long a new process may take until it understands us.
const READY_MAX: Duration = Duration::from_secs(60);
/// Above the limit of a process by so much lies what the kernel refuses it: memory can grow faster than it is looked at. Nix
/// asks for address space ahead of its use (a quarter of the host's, at most 384 MiB), so it cannot lie lower.
const HARD_LIMIT_ABOVE_BYTES: u64 = 1 << 30;
/// Lines of an expression's traces and Nix's warnings that go to the log.
const LINES_LOGGED_MAX: u64 = 1_000;
const LOGGED_BYTES_MAX: usize = 1_000;

/// What all processes of an evaluation have in common.
pub(super) struct Surroundings {
    pub nonce: String,
    preamble: Vec<String>,
    arguments: Vec<String>,
    environment: Vec<(&'static str, PathBuf)>,
    heap: Option<String>,
    memory_max_bytes: u64,
    hard_limit: bool,
    job_timeout: Option<Duration>,
    lines_logged: AtomicU64,
    pub stop: AtomicBool,
    folder: Folder,
}

/// A folder of the evaluation's own, removed with it.
struct Folder(PathBuf);

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// In front of the names of such folders; our process id follows.
const FOLDER_PREFIX: &str = "hydrad-eval-";

impl Folder {
    fn new(nonce: &str) -> Result<Folder, EvalError> {
        let parent = std::env::temp_dir();
        remove_forgotten(&parent);
        let name = format!("{FOLDER_PREFIX}{}-{}", std::process::id(), &nonce[..8]);
        let folder = parent.join(name);
        let made = fs::DirBuilder::new().mode(0o700).create(&folder);
        made.map_err(|error| EvalError::Folder {
            path: folder.clone(),
            why: plain_error(&error),
        })?;
        Ok(Folder(folder))
    }
}

/// Takes away what processes that were killed have left. Not more than looking: others' folders stay.
fn remove_forgotten(parent: &Path) {
    for entry in fs::read_dir(parent).into_iter().flatten().flatten() {
        let name = entry.file_name();
        let pid = name.to_str().and_then(|name| {
            name.strip_prefix(FOLDER_PREFIX)?
                .split('-')
                .next()?
                .parse()
                .ok()
        });
        if pid.is_some_and(|pid| !process::is_alive(pid)) {
            let _ = fs::remove_dir_all(entry.path());
        }
    }
}

impl Surroundings {
    pub fn new(request: &Request<'_>, restricted: bool) -> Result<Surroundings, EvalError> {
        let nonce = nonce()?;
        let folder = Folder::new(&nonce)?;
        let mut arguments: Vec<String> = ["repl", "--log-format", "raw"].map(str::to_owned).into();
        for (name, value) in super::options(request, restricted) {
            arguments.extend(["--option".to_owned(), name, value]);
        }
        if let Source::Legacy {
            search,
            arguments: given,
            ..
        } = &request.source
        {
            for (name, path) in search {
                arguments.extend(["-I".to_owned(), super::search_entry(name, path)]);
            }
            if !given.is_empty() {
                write_arguments(&folder.0, given).map_err(|error| EvalError::Folder {
                    path: folder.0.clone(),
                    why: plain_error(&error),
                })?;
                let entry = format!("{ARGUMENTS}={}", folder.0.display());
                arguments.extend(["-I".to_owned(), entry]);
            }
        }
        // What an evaluation leaves behind is not the next one's business; nor is a user's Nix configuration. A flake's inputs
        // need the user's tokens and what was downloaded before, though.
        let mut environment = vec![("XDG_DATA_HOME", folder.0.clone())];
        if matches!(request.source, Source::Legacy { .. }) {
            for name in [
                "HOME",
                "XDG_CACHE_HOME",
                "XDG_CONFIG_HOME",
                "XDG_STATE_HOME",
            ] {
                environment.push((name, folder.0.clone()));
            }
        }
        Ok(Surroundings {
            preamble: protocol::preamble(&nonce, &request.source),
            nonce,
            arguments,
            environment,
            heap: request.settings.initial_heap_size.clone(),
            memory_max_bytes: request.settings.memory_max_bytes,
            // What is built for an import may need more, where the process itself builds it.
            hard_limit: !request.settings.import_from_derivation,
            job_timeout: request.settings.job_timeout,
            lines_logged: AtomicU64::new(0),
            stop: AtomicBool::new(false),
            folder,
        })
    }

    /// Of the process that evaluates, and of no other.
    fn command(&self) -> Command {
        let mut command = Command::new("nix");
        command
            .args(&self.arguments)
            .current_dir(&self.folder.0)
            .env_remove("NIX_PATH")
            .env("TERM", "dumb");
        with_harmless_git(&mut command);
        for (name, value) in &self.environment {
            command.env(name, value);
        }
        if let Some(heap) = &self.heap {
            command.env("GC_INITIAL_HEAP_SIZE", heap);
        }
        command
    }

    /// An expression's trace, or a warning of Nix's.
    fn log(&self, line: &str) {
        let line = crate::base::text::presentable(line.trim_end().as_bytes(), LOGGED_BYTES_MAX);
        if line.is_empty() {
            return;
        }
        match self.lines_logged.fetch_add(1, Ordering::Relaxed) {
            n if n < LINES_LOGGED_MAX => log::info!("{line}"),
            LINES_LOGGED_MAX => log::info!("(further traces and warnings are not shown)"),
            _ => {}
        }
    }
}

/// Not to be guessed by an expression that wants to be taken for us.
fn nonce() -> Result<String, EvalError> {
    let mut bytes = [0u8; 16];
    let random = fs::File::open("/dev/urandom")
        .and_then(|mut file| std::io::Read::read_exact(&mut file, &mut bytes));
    random.map_err(|error| EvalError::Folder {
        path: "/dev/urandom".into(),
        why: plain_error(&error),
    })?;
    Ok(hex_encode(&bytes))
}

/// One file for each expression, so that an error in one shows where it is, and one that names them.
fn write_arguments(folder: &Path, arguments: &[(String, Argument)]) -> std::io::Result<()> {
    let mut all = String::from("{\n");
    for (number, (name, argument)) in arguments.iter().enumerate() {
        let value = match argument {
            Argument::String(text) => expression::string(text),
            Argument::Expression(text) => {
                fs::write(folder.join(format!("argument-{number}.nix")), text)?;
                format!("import ./argument-{number}.nix")
            }
        };
        all.push_str(&format!("{} = {value};\n", expression::string(name)));
    }
    all.push_str("}\n");
    fs::write(folder.join("arguments.nix"), all)
}

/// A process that waits for lines.
pub(super) struct Process<'a> {
    around: &'a Surroundings,
    child: PipedChild,
    stdin: ChildStdin,
    lines: Receiver<String>,
    lines_sent: u64,
    /// Attributes it has evaluated, or failed at.
    pub attributes: u64,
    /// Its memory when last looked at, for whoever adds them up.
    memory: &'a AtomicU64,
    pub peak_bytes: u64,
    looked: Instant,
}

/// How a line ended.
#[derive(Debug)]
pub(super) enum Outcome {
    /// All was told.
    Done,
    /// The attribute after those that were told has this error; the rest was not tried. The process is well.
    Failed(String),
    /// The process is gone.
    Ended(End),
}

/// Why a process is gone.
#[derive(Debug)]
pub(super) enum End {
    Memory {
        had_bytes: u64,
    },
    Time,
    /// By itself, and what it said before.
    Itself {
        how: String,
        words: String,
    },
    /// The evaluation is to stop.
    Stopped,
}

impl<'a> Process<'a> {
    /// Starts one and waits until it understands us.
    pub fn start(
        around: &'a Surroundings,
        memory: &'a AtomicU64,
    ) -> Result<Process<'a>, EvalError> {
        let mut command = around.command();
        let (child, stdin, stderr) =
            child::spawn_heard(&mut command).map_err(|error| EvalError::Start {
                program: "nix".to_owned(),
                why: plain_error(&error),
            })?;
        if around.hard_limit {
            let hard = around.memory_max_bytes + HARD_LIMIT_ABOVE_BYTES + around.heap_bytes();
            if let Err(error) = process::limit_data(child.pid(), hard) {
                log::debug!(
                    "cannot limit the memory of process {}: {error}",
                    child.pid()
                );
            }
        }
        let (sender, lines) = bounded(LINES_AHEAD);
        crate::sys::thread::spawn("evaluate-hear", move || hear(stderr, &sender)).map_err(
            |error| EvalError::Start {
                program: "a thread".to_owned(),
                why: plain_error(&error),
            },
        )?;
        let mut process = Process {
            around,
            child,
            stdin,
            lines,
            lines_sent: 0,
            attributes: 0,
            memory,
            peak_bytes: 0,
            looked: Instant::now(),
        };
        let preamble = around.preamble.join("\n");
        match process.say(&preamble, Some(READY_MAX), &mut |_, _| {}) {
            Outcome::Done => Ok(process),
            Outcome::Failed(words) => Err(EvalError::Process(words)),
            Outcome::Ended(End::Stopped) => Err(EvalError::Stopped),
            Outcome::Ended(end) => Err(EvalError::Process(process.describe(end))),
        }
    }

    /// Whether it has evaluated nothing yet.
    pub fn is_fresh(&self) -> bool {
        self.attributes == 0
    }

    /// Says a line and hears all that is told of it: numbers of attributes, and what they are.
    pub fn evaluate(&mut self, line: &str, told: &mut dyn FnMut(u32, &str)) -> Outcome {
        let mut count = 0;
        let outcome = self.say(line, self.around.job_timeout, &mut |number, text| {
            count += 1;
            told(number, text);
        });
        self.attributes += count + u64::from(matches!(outcome, Outcome::Failed(_)));
        outcome
    }

    fn say(
        &mut self,
        line: &str,
        each_max: Option<Duration>,
        told: &mut dyn FnMut(u32, &str),
    ) -> Outcome {
        self.lines_sent += 1;
        let end = protocol::end(&self.around.nonce, self.lines_sent);
        // A process that has ended does not take it; that shows below.
        let _ = self.stdin.write_all(format!("{line}\n{end}").as_bytes());
        let mut words = String::new();
        let mut since = Instant::now();
        loop {
            match self.lines.recv_timeout(LOOK_EVERY) {
                Ok(line) => match protocol::hear(&self.around.nonce, &line) {
                    Heard::Told { number, text } => {
                        self.log(&words);
                        words.clear();
                        since = Instant::now();
                        told(number, text);
                    }
                    Heard::End { number, cut_short } if number == self.lines_sent => {
                        return match words::error(&words) {
                            _ if cut_short => Outcome::Failed(words::CUT_SHORT.to_owned()),
                            Some(error) => Outcome::Failed(error),
                            None => {
                                self.log(&words);
                                Outcome::Done
                            }
                        };
                    }
                    Heard::End { .. } => {}
                    Heard::Words => keep(&mut words, &line),
                },
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => {
                    return self.ended(words);
                }
            }
            if self.looked.elapsed() < LOOK_EVERY {
                continue;
            }
            if self.around.stop.load(Ordering::Relaxed) {
                return Outcome::Ended(End::Stopped);
            }
            let had_bytes = self.look();
            // Somebody it started may hold the pipe open: then there is no end of it to be read.
            if had_bytes == 0 && self.lines.is_empty() && !process::is_alive(self.child.pid()) {
                return self.ended(words);
            }
            if had_bytes > self.around.memory_max_bytes {
                self.child.kill();
                return Outcome::Ended(End::Memory { had_bytes });
            }
            if each_max.is_some_and(|max| since.elapsed() > max) {
                self.child.kill();
                return Outcome::Ended(End::Time);
            }
        }
    }

    fn ended(&mut self, words: String) -> Outcome {
        let status = self.child.kill();
        let how = status.map_or_else(|| "it does not end".to_owned(), describe_status);
        Outcome::Ended(End::Itself { how, words })
    }

    /// Its memory now, bytes.
    fn look(&mut self) -> u64 {
        self.looked = Instant::now();
        let bytes = process::resident_bytes(self.child.pid()).unwrap_or(0);
        self.peak_bytes = self.peak_bytes.max(bytes);
        self.memory.store(bytes, Ordering::Relaxed);
        bytes
    }

    fn log(&self, words: &str) {
        // Its welcome is no news.
        if self.lines_sent == 1 {
            return;
        }
        for line in words.lines() {
            self.around.log(line);
        }
    }

    /// What is said of a job at which the process ended.
    pub fn describe(&self, end: End) -> String {
        match end {
            End::Memory { had_bytes } => words::too_large(had_bytes, self.around.memory_max_bytes),
            End::Time => words::too_long(self.around.job_timeout.unwrap_or(READY_MAX)),
            End::Itself { how, words } => words::ended(&how, self.peak_bytes, &words),
            End::Stopped => EvalError::Stopped.to_string(),
        }
    }
}

impl Surroundings {
    /// What the initial heap adds to the address space; 0 if it is not a number that we know.
    fn heap_bytes(&self) -> u64 {
        let heap = self.heap.as_deref().unwrap_or_default();
        crate::config::settings::parse_bytes(heap).unwrap_or(0)
    }
}

impl Drop for Process<'_> {
    fn drop(&mut self) {
        // It writes nothing but derivations, each as a whole; waiting for its thanks would only take time.
        self.child.kill();
        self.memory.store(0, Ordering::Relaxed);
    }
}

/// Adds a line to what is kept of its words.
fn keep(words: &mut String, line: &str) {
    words.push_str(line);
    words.push('\n');
    if words.len() > 2 * WORDS_BYTES_MAX {
        let mut from = words.len() - WORDS_BYTES_MAX;
        while !words.is_char_boundary(from) {
            from += 1;
        }
        // What it ends with is an error all the same.
        let is_error = |line: &str| text::plain(line).trim_start().starts_with("error:");
        let began = words[..from].lines().any(is_error);
        words.drain(..from);
        if began {
            words.insert_str(0, "error: (its beginning is left out)\n");
        }
    }
}

/// Reads lines until the process has closed its side, or nobody wants them.
fn hear(stderr: ChildStderr, lines: &Sender<String>) {
    let mut stderr = BufReader::with_capacity(64 << 10, stderr);
    let mut line = Vec::new();
    loop {
        line.clear();
        match read_line(&mut stderr, &mut line) {
            Ok(true) => {}
            Ok(false) | Err(_) => return,
        }
        let text = String::from_utf8_lossy(&line).into_owned();
        if lines.send(text).is_err() {
            return;
        }
    }
}

/// One line without its end, of which at most [`LINE_BYTES_MAX`] are kept; `false` at the end.
fn read_line(reader: &mut impl BufRead, line: &mut Vec<u8>) -> std::io::Result<bool> {
    loop {
        let buffer = reader.fill_buf()?;
        if buffer.is_empty() {
            return Ok(!line.is_empty());
        }
        let (text, used, ended) = match buffer.iter().position(|b| *b == b'\n') {
            Some(at) => (&buffer[..at], at + 1, true),
            None => (buffer, buffer.len(), false),
        };
        let room = LINE_BYTES_MAX - line.len();
        line.extend_from_slice(&text[..text.len().min(room)]);
        reader.consume(used);
        if ended {
            return Ok(true);
        }
    }
}
