//! How far an evaluation is: a line on a terminal, and a JSON object a line for whoever started it.
//!
//! Who started it names a file descriptor in HYDRAD_PROGRESS_FD, the writing end of a pipe. A line that does not fit into the pipe
//! is left out: an evaluation waits for no reader.

use std::fs::File;
use std::io::{IsTerminal, Write};
use std::os::fd::{FromRawFd, RawFd};
use std::sync::Mutex;
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};
use serde_json::{json, Map, Value};

use crate::base::lock::lock;

/// Numbers are told at most this often; a new phase at once.
const TELL_EVERY: Duration = Duration::from_millis(200);
/// A pipe takes lines up to this length whole or not at all, bytes.
const LINE_BYTES_MAX: usize = libc::PIPE_BUF;

/// What an evaluation is at.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Phase {
    /// For another evaluation of the same jobset.
    Waiting,
    Fetching,
    Evaluating,
    Writing,
    /// Its builds become the current ones.
    Marking,
}

impl Phase {
    pub fn word(self) -> &'static str {
        match self {
            Phase::Waiting => "waiting",
            Phase::Fetching => "fetching",
            Phase::Evaluating => "evaluating",
            Phase::Writing => "writing",
            Phase::Marking => "marking",
        }
    }
}

pub struct Progress {
    bar: ProgressBar,
    supervised: bool,
    state: Mutex<State>,
}

struct State {
    pipe: Option<File>,
    told: Option<Instant>,
    phase: Phase,
    about: String,
}

impl Progress {
    /// For an evaluation of this jobset. Takes the descriptor of HYDRAD_PROGRESS_FD for itself; none of our children gets it.
    pub fn new() -> Progress {
        let pipe = std::env::var("HYDRAD_PROGRESS_FD")
            .ok()
            .and_then(|number| number.parse().ok())
            .and_then(pipe);
        let supervised = pipe.is_some();
        let bar = match !supervised && std::io::stderr().is_terminal() {
            true => ProgressBar::new_spinner(),
            false => ProgressBar::hidden(),
        };
        if let Ok(style) = ProgressStyle::with_template("{elapsed} {spinner} {msg}") {
            bar.set_style(style);
        }
        bar.enable_steady_tick(TELL_EVERY);
        let state = State {
            pipe,
            told: None,
            phase: Phase::Waiting,
            about: String::new(),
        };
        Progress {
            bar,
            supervised,
            state: Mutex::new(state),
        }
    }

    /// Whether somebody who started it follows it, and sees how it ends.
    pub fn is_supervised(&self) -> bool {
        self.supervised
    }

    /// A new phase; `about` is what of.
    pub fn enter(&self, phase: Phase, about: &str) {
        let mut state = lock(&self.state);
        state.phase = phase;
        state.about = about.to_owned();
        state.told = Some(Instant::now());
        let mut line = Map::new();
        if !about.is_empty() {
            line.insert("about".to_owned(), json!(about));
        }
        state.tell(line);
        self.bar.set_message(state.words());
    }

    /// How far the phase is: an object of numbers, and the same for people. (Not told each time.)
    pub fn at(&self, numbers: impl FnOnce() -> (Map<String, Value>, String)) {
        let mut state = lock(&self.state);
        if state.told.is_some_and(|at| at.elapsed() < TELL_EVERY) {
            return;
        }
        state.told = Some(Instant::now());
        let (line, words) = numbers();
        state.about = words;
        state.tell(line);
        self.bar.set_message(state.words());
    }

    /// The phase, and how far it is, in words.
    pub fn words(&self) -> String {
        lock(&self.state).words()
    }

    pub fn phase(&self) -> Phase {
        lock(&self.state).phase
    }

    /// Prints something without the line of progress in it.
    pub fn beside(&self, print: impl FnOnce()) {
        self.bar.suspend(print);
    }

    pub fn finish(&self) {
        self.bar.finish_and_clear();
    }
}

impl Default for Progress {
    fn default() -> Progress {
        Progress::new()
    }
}

impl State {
    fn words(&self) -> String {
        match self.about.is_empty() {
            true => self.phase.word().to_owned(),
            false => format!("{} {}", self.phase.word(), self.about),
        }
    }

    fn tell(&mut self, mut line: Map<String, Value>) {
        let Some(pipe) = &mut self.pipe else { return };
        line.insert("phase".to_owned(), json!(self.phase.word()));
        let line = format!("{}\n", Value::Object(line));
        if line.len() > LINE_BYTES_MAX {
            return;
        }
        match pipe.write(line.as_bytes()) {
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {}
            Err(_) => self.pipe = None, // nobody reads any more
            Ok(_) => {}
        }
    }
}

/// The descriptor as a file of ours that never waits, if it is one.
fn pipe(fd: RawFd) -> Option<File> {
    if fd <= 2 {
        return None;
    }
    // SAFETY: fcntl has no memory arguments here and fails on a number that is no descriptor.
    let ours = unsafe {
        libc::fcntl(fd, libc::F_SETFD, libc::FD_CLOEXEC) == 0
            && libc::fcntl(fd, libc::F_SETFL, libc::O_NONBLOCK) == 0
    };
    // SAFETY: who started us gave us this descriptor, and nobody else in this process knows its number.
    ours.then(|| unsafe { File::from_raw_fd(fd) })
}
