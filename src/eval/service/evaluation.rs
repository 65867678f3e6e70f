//! One evaluation under way: the child, what it says, and in words how it ended.

use std::collections::VecDeque;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::base::lock::lock;
use crate::base::text;
use crate::db::evaluator::Begun;
use crate::eval::schedule::{How, Why};
use crate::model::{JobsetId, UnixSecs};
use crate::sys::cgroup::{Delegated, Group};
use crate::sys::child::plain_error;
use crate::sys::heartbeat;
use crate::sys::kill::KillSwitch;
use crate::sys::supervised::{self, End, Said};

/// Where the child writes how far it is.
const PROGRESS_VARIABLE: &str = "HYDRAD_PROGRESS_FD";
/// How readily the kernel ends an evaluation when memory is short: before everybody else's usual programs, and before us.
const OOM_SCORE: i32 = 500;
/// Of a longer line the rest is another line.
const LINE_BYTES_MAX: usize = 4 << 10;
/// Lines of one evaluation that are logged.
const LINES_LOGGED_MAX: u64 = 20_000;
/// Lines that are kept for the message.
const LAST_LINES_MAX: usize = 20;
/// A longer line of progress is none.
const PROGRESS_BYTES_MAX: usize = 64 << 10;
/// Once it was told to end it has so long, unless we ourselves are stopping.
pub const END_PATIENCE: Duration = Duration::from_secs(10);

/// What makes an evaluation, given a project and a jobset.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Program {
    pub path: PathBuf,
    /// Before the two names.
    pub args: Vec<String>,
}

impl Program {
    /// The program of the setting, else this very one, which is told of the `--state` of this process.
    pub fn of(setting: Option<&str>, state: Option<&Path>) -> Program {
        match setting {
            Some(path) => Program {
                path: path.into(),
                args: Vec::new(),
            },
            None => Program {
                path: own_program(),
                args: std::iter::once("eval-jobset".to_owned())
                    .chain(state.map(|dir| format!("--state={}", dir.display())))
                    .collect(),
            },
        }
    }
}

/// Also where the file was replaced since we were started, as by an upgrade.
fn own_program() -> PathBuf {
    let own = std::env::current_exe().ok().filter(|path| path.exists());
    own.unwrap_or_else(|| "/proc/self/exe".into())
}

/// What an evaluation is given.
pub struct Order {
    pub begun: Begun,
    pub program: Program,
    /// Where it gets a control group of its own.
    pub groups: Option<Delegated>,
    /// What all of it may use there.
    pub memory_bytes_max: u64,
}

/// One under way, as the others see it.
pub struct Running {
    pub begun: Begun,
    pub since: UnixSecs,
    pub started: Instant,
    pub why: Option<Why>,
    pub view: Arc<View>,
}

/// What its thread tells while it lasts.
pub struct View {
    kill: KillSwitch,
    /// Milliseconds between SIGTERM and SIGKILL.
    patience_ms: AtomicU64,
    told: Mutex<Told>,
}

#[derive(Clone, Default, Debug)]
pub struct Told {
    pub pid: u32,
    /// What it said last of how far it is.
    pub progress: Value,
    /// What its control group has in use; `None` where there is none.
    pub memory_bytes: Option<u64>,
}

impl View {
    /// # Errors
    /// When the process is out of file descriptors.
    pub fn new() -> std::io::Result<View> {
        Ok(View {
            kill: KillSwitch::new()?,
            patience_ms: AtomicU64::new(0),
            told: Mutex::default(),
        })
    }

    pub fn told(&self) -> Told {
        lock(&self.told).clone()
    }

    /// Ends it: SIGTERM now, SIGKILL after `patience`.
    pub fn end(&self, patience: Duration) {
        let ms = u64::try_from(patience.as_millis()).unwrap_or(u64::MAX);
        self.patience_ms.store(ms, Ordering::SeqCst);
        self.kill.throw();
    }

    fn patience(&self) -> Duration {
        Duration::from_millis(self.patience_ms.load(Ordering::SeqCst))
    }
}

/// How one ended.
#[derive(Debug)]
pub struct Outcome {
    pub jobset: JobsetId,
    /// Else why it was not started.
    pub end: Result<End, String>,
    /// The most memory its control group had in use.
    pub memory_peak: Option<u64>,
    /// Processes that the kernel ended in its control group.
    pub memory_kills: u64,
    pub last_lines: String,
}

impl Outcome {
    pub fn not_started(jobset: JobsetId, why: String) -> Outcome {
        Outcome {
            jobset,
            end: Err(why),
            memory_peak: None,
            memory_kills: 0,
            last_lines: String::new(),
        }
    }

    /// The most memory that is known of: of all its processes, else of the largest one.
    pub fn memory_bytes(&self) -> u64 {
        let largest = self.end.as_ref().map_or(0, |end| end.memory_bytes_max);
        self.memory_peak.unwrap_or(largest)
    }
}

/// The body of its thread, from start to end.
pub fn run(order: &Order, view: &View) -> Outcome {
    let begun = &order.begun;
    let name = format!("{}:{}", begun.project, begun.name);
    heartbeat::idle("watching an evaluation");
    heartbeat::about(Some(name.as_str().into()));
    let group = order.groups.as_ref().and_then(|groups| {
        let group = groups.group(
            &format!("eval-{}", begun.jobset),
            Some(order.memory_bytes_max),
        );
        group
            .map_err(|error| log::warn!("{name}: no control group for its evaluation: {error}"))
            .ok()
    });
    let mut command = Command::new(&order.program.path);
    command.args(&order.program.args);
    command.args([&begun.project, &begun.name]);
    let started = supervised::start(command, PROGRESS_VARIABLE, OOM_SCORE, group.as_ref());
    let child = match started {
        Ok(child) => child,
        Err(error) => {
            let program = order.program.path.display();
            let why = format!("cannot start {program}: {}", plain_error(&error));
            return Outcome::not_started(begun.jobset, why);
        }
    };
    lock(&view.told).pid = child.pid();
    let mut lines = Lines::new(&name);
    let mut progress = Vec::new();
    let end = child.watch(&view.kill, &|| view.patience(), group.as_ref(), |said| {
        match said {
            Said::Output(bytes) => lines.take(bytes),
            Said::Progress(bytes) => take_progress(&mut progress, bytes, view),
        }
        if let Some(group) = &group {
            lock(&view.told).memory_bytes = group.memory_now();
        }
    });
    lines.end();
    Outcome {
        jobset: begun.jobset,
        end: Ok(end),
        memory_peak: group.as_ref().and_then(Group::memory_peak),
        memory_kills: group.as_ref().map_or(0, Group::memory_kills),
        last_lines: lines.last(),
    }
}

/// Whole lines of JSON; the newest counts.
fn take_progress(pending: &mut Vec<u8>, bytes: &[u8], view: &View) {
    pending.extend_from_slice(bytes);
    let Some(end) = pending.iter().rposition(|byte| *byte == b'\n') else {
        if pending.len() > PROGRESS_BYTES_MAX {
            pending.clear();
        }
        return;
    };
    let newest = pending[..end].rsplit(|byte| *byte == b'\n').next();
    let newest = newest.filter(|line| line.len() <= PROGRESS_BYTES_MAX);
    if let Some(Ok(Value::Object(told))) = newest.map(serde_json::from_slice) {
        lock(&view.told).progress = Value::Object(told);
    }
    pending.drain(..=end);
}

/// The lines that an evaluation says: logged with its name, and the last ones kept.
struct Lines<'a> {
    name: &'a str,
    pending: Vec<u8>,
    last: VecDeque<String>,
    count: u64,
}

impl<'a> Lines<'a> {
    fn new(name: &'a str) -> Lines<'a> {
        Lines {
            name,
            pending: Vec::new(),
            last: VecDeque::new(),
            count: 0,
        }
    }

    fn take(&mut self, bytes: &[u8]) {
        for piece in bytes.split_inclusive(|byte| *byte == b'\n') {
            self.pending.extend_from_slice(piece);
            if piece.ends_with(b"\n") || self.pending.len() >= LINE_BYTES_MAX {
                self.line();
            }
        }
    }

    fn line(&mut self) {
        let line = text::presentable(&std::mem::take(&mut self.pending), LINE_BYTES_MAX);
        let line = line.trim_end();
        if line.is_empty() {
            return;
        }
        self.count += 1;
        if self.count <= LINES_LOGGED_MAX {
            log::info!("{}: {line}", self.name);
        }
        if self.last.len() == LAST_LINES_MAX {
            self.last.pop_front();
        }
        self.last.push_back(line.to_owned());
    }

    fn end(&mut self) {
        self.line();
        if self.count > LINES_LOGGED_MAX {
            log::warn!(
                "{}: it said {} lines, of which the first {LINES_LOGGED_MAX} are in the log",
                self.name,
                self.count
            );
        }
    }

    fn last(&self) -> String {
        let lines: Vec<&str> = self.last.iter().map(String::as_str).collect();
        lines.join("\n")
    }
}

/// What is counted of ends.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Ending {
    /// Exit code 0: evaluated, unchanged, or an input could not be fetched.
    Done,
    /// Exit code 1: it failed, and its row says why.
    Failed,
    /// Any other end of its own.
    Died,
    /// Its time was over.
    TimeOver,
    /// By us, for a reason that is none of its own.
    Ended,
    NotStarted,
}

impl Ending {
    pub const ALL: [Ending; 6] = [
        Ending::Done,
        Ending::Failed,
        Ending::Died,
        Ending::TimeOver,
        Ending::Ended,
        Ending::NotStarted,
    ];

    pub fn word(self) -> &'static str {
        match self {
            Ending::Done => "done",
            Ending::Failed => "failed",
            Ending::Died => "died",
            Ending::TimeOver => "time_over",
            Ending::Ended => "ended",
            Ending::NotStarted => "not_started",
        }
    }

    pub fn how(self) -> How {
        match self {
            Ending::Done => How::Done,
            Ending::Ended => How::Ended,
            _ => How::Failed,
        }
    }
}

/// What an end means, and what is to stand in the jobset's row if nobody else has written it there.
pub fn judge(outcome: &Outcome, why: Option<Why>, took: Duration) -> (Ending, Option<String>) {
    let end = match &outcome.end {
        Ok(end) => end,
        Err(error) => {
            return (
                Ending::NotStarted,
                Some(format!("evaluation failed: {error}")),
            )
        }
    };
    let took = text::duration(i64::try_from(took.as_secs()).unwrap_or(i64::MAX));
    let (result, first) = match (end.status.code(), end.status.signal(), why) {
        (Some(0), _, _) => return (Ending::Done, None),
        (Some(1), _, _) => return (Ending::Failed, None),
        (_, _, Some(Why::TimeLimit)) => (
            Ending::TimeOver,
            format!("evaluation failed: it was ended after {took}, which is all that evaluator_timeout gives it"),
        ),
        (_, _, Some(_)) => return (Ending::Ended, None),
        (Some(code), _, None) => (
            Ending::Died,
            format!("evaluation failed with exit code {code}"),
        ),
        (None, Some(signal), None) => (
            Ending::Died,
            format!(
                "evaluation failed due to signal {signal} ({})",
                signal_words(signal)
            ),
        ),
        (None, None, None) => (Ending::Died, "evaluation died abnormally".to_owned()),
    };
    let mut message = first;
    if let Some(memory) = memory_words(outcome, end, why) {
        message.push_str("\n\n");
        message.push_str(&memory);
    }
    if !outcome.last_lines.is_empty() {
        message.push_str("\n\nThe last it said:\n");
        message.push_str(&outcome.last_lines);
    }
    (result, Some(message))
}

/// What memory has to do with it, if it may have.
fn memory_words(outcome: &Outcome, end: &End, why: Option<Why>) -> Option<String> {
    let largest = text::bytes_text(end.memory_bytes_max);
    if outcome.memory_kills > 0 {
        let used = outcome
            .memory_peak
            .map_or_else(|| largest.clone(), text::bytes_text);
        return Some(format!(
            "The kernel ended {} of its processes for want of memory; together they had used up to {used}. A smaller jobset, \
             fewer evaluator_workers or a smaller evaluator_max_memory_size need less; evaluator_memory_budget allows more.",
            outcome.memory_kills
        ));
    }
    if end.status.signal() != Some(libc::SIGKILL) || why.is_some() {
        return None;
    }
    let peak = outcome.memory_peak.map_or(String::new(), |peak| {
        format!(", all together {}", text::bytes_text(peak))
    });
    Some(format!(
        "This evaluator did not do that: an operator, or the kernel when memory was short (`journalctl -k` says so). Its largest \
         process had used {largest}{peak}. Fewer evaluator_workers, a smaller evaluator_max_memory_size or evaluator_memory_budget \
         need less memory."
    ))
}

/// As strsignal(3) has it.
fn signal_words(signal: i32) -> String {
    // SAFETY: for any number a terminated string comes back, which is copied at once.
    unsafe {
        let words = libc::strsignal(signal);
        if words.is_null() {
            return format!("Unknown signal {signal}");
        }
        std::ffi::CStr::from_ptr(words)
            .to_string_lossy()
            .into_owned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::ExitStatus;

    fn outcome(status: i32) -> Outcome {
        Outcome {
            jobset: JobsetId(1),
            end: Ok(End {
                status: ExitStatus::from_raw(status),
                memory_bytes_max: 3 << 30,
                left_behind: 0,
            }),
            memory_peak: None,
            memory_kills: 0,
            last_lines: "warming up\ngoodbye".to_owned(),
        }
    }

    #[test]
    fn what_an_end_means_and_what_the_row_says() {
        let took = Duration::from_secs(7_260);
        let check = |status, why| judge(&outcome(status), why, took);
        let exit = |code: i32| code << 8;
        assert_eq!(check(exit(0), None), (Ending::Done, None));
        assert_eq!(check(exit(1), None), (Ending::Failed, None));
        // It was quicker than our signal.
        assert_eq!(check(exit(0), Some(Why::TimeLimit)), (Ending::Done, None));
        assert_eq!(
            check(libc::SIGTERM, Some(Why::Deleted)),
            (Ending::Ended, None)
        );
        let tail = "\n\nThe last it said:\nwarming up\ngoodbye";
        let (result, message) = check(exit(255), None);
        assert_eq!(
            (result, message),
            (
                Ending::Died,
                Some(format!("evaluation failed with exit code 255{tail}"))
            )
        );
        let (result, message) = check(libc::SIGTERM, Some(Why::TimeLimit));
        let message = message.expect("a message");
        assert_eq!(result, Ending::TimeOver);
        assert!(
            message.starts_with("evaluation failed: it was ended after 2 h 1 min, "),
            "{message}"
        );
        let (_, message) = check(libc::SIGKILL, None);
        let message = message.expect("a message");
        assert!(
            message.starts_with("evaluation failed due to signal 9 (Killed)\n\n"),
            "{message}"
        );
        assert!(
            message.contains("Its largest process had used 3 GiB."),
            "{message}"
        );
        let killed = Outcome {
            memory_peak: Some(8 << 30),
            memory_kills: 1,
            ..outcome(exit(101))
        };
        let (_, message) = judge(&killed, None, took);
        let message = message.expect("a message");
        assert!(
            message.contains("for want of memory; together they had used up to 8 GiB."),
            "{message}"
        );
    }

    #[test]
    fn the_last_lines_are_kept_whatever_they_are() {
        let mut lines = Lines::new("p:s");
        lines.take(b"one\n\n\x1b[31mtw");
        lines.take(b"o\x1b[0m\r\n");
        lines.take(&[b'x'; 3 * LINE_BYTES_MAX]);
        lines.take(b"\n\xff\nend");
        lines.end();
        let last = lines.last();
        assert!(last.starts_with("one\ntwo\nxxx"), "{last}");
        assert!(last.ends_with("\u{fffd}\nend"), "{last}");
        for _ in 0..100 {
            lines.take(b"more\n");
        }
        assert_eq!(lines.last(), ["more"; LAST_LINES_MAX].join("\n"));
    }

    #[test]
    fn the_newest_whole_line_of_progress_counts() {
        let view = View::new().expect("a view");
        let mut pending = Vec::new();
        for (bytes, phase) in [
            (&b"{\"phase\":\"fetch"[..], Value::Null),
            (b"ing\"}\n{\"phase\":\"x\"", "fetching".into()),
            (b"}\nnonsense\n", "fetching".into()),
            (b"{\"phase\":\"writing\"}\n", "writing".into()),
        ] {
            take_progress(&mut pending, bytes, &view);
            assert_eq!(view.told().progress["phase"], phase);
        }
        take_progress(&mut pending, &[b'{'; PROGRESS_BYTES_MAX + 1], &view);
        assert!(pending.is_empty());
    }
}
