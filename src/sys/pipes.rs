//! A conversation over pipes in which every wait has a deadline with a name, can be interrupted, and
//! keeps reading the other side's stderr meanwhile.
//!
//! One thread does all three: whenever it would block on stdin or stdout it polls them together with
//! stderr and the kill switch. So no thread is spent on reading logs, stderr can never fill up and block
//! the other side, and a log is complete when the pipe is empty after the reply.
//!
//! Knows no protocol and no process.

use std::collections::VecDeque;
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use super::heartbeat::{self, Patience};
use super::kill::KillSwitch;
use crate::base::lock::lock;

/// How much of stderr is kept for error messages, bytes.
const TAIL_BYTES_MAX: usize = 16 << 10;
/// How much is read from stderr at once, bytes.
const STDERR_CHUNK_BYTES: usize = 64 << 10;
/// How often it is read in a row: as much as a pipe can hold (1 MB), so that a child that never stops writing keeps no limit
/// or deadline from being looked at.
const STDERR_CHUNKS_MAX: usize = 16;

/// Why a wait ended without what it waited for. Travels inside `io::Error`; see [`interruption`].
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum Interruption {
    /// The kill switch was thrown.
    #[error("interrupted")]
    Killed,
    /// Nothing moved for as long as the phase allows.
    #[error("no progress for {secs} s while {phase}")]
    Deadline { phase: &'static str, secs: u64 },
}

/// The [`Interruption`] inside an error, if it is one.
pub fn interruption(error: &io::Error) -> Option<&Interruption> {
    error
        .get_ref()
        .and_then(|inner| inner.downcast_ref::<Interruption>())
}

impl From<Interruption> for io::Error {
    fn from(interruption: Interruption) -> io::Error {
        let kind = match interruption {
            Interruption::Killed => io::ErrorKind::Other,
            Interruption::Deadline { .. } => io::ErrorKind::TimedOut,
        };
        io::Error::new(kind, interruption)
    }
}

/// The limits of a build, enforced here whatever the other side does.
#[derive(Clone, Copy, Debug)]
pub struct BuildLimits {
    pub total: Option<Duration>,
    pub silence: Option<Duration>,
    /// Bytes of log; 0 is no limit.
    pub log_bytes_max: u64,
}

/// What ended [`Pipes::wait_for_reply`].
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ReplyWait {
    /// Bytes (or the end of the stream) are there to be read.
    Ready,
    TimedOut,
    Silent,
    LogLimit,
}

/// What both directions share.
#[derive(Debug)]
pub struct Pipes {
    kill: Mutex<Arc<KillSwitch>>,
    wait: Mutex<Wait>,
    stderr: Mutex<Stderr>,
}

#[derive(Debug)]
struct Wait {
    phase: &'static str,
    idle_max: Duration,
    last_progress: Instant,
}

#[derive(Debug)]
struct Stderr {
    fd: Option<OwnedFd>,
    tail: VecDeque<u8>,
    log: Option<Log>,
    last_output: Instant,
}

#[derive(Debug)]
struct Log {
    file: File,
    bytes: u64,
    bytes_max: u64,
    over_limit: bool,
    error: Option<io::Error>,
}

/// The readable end (the other side's stdout).
#[derive(Debug)]
pub struct PipeReader {
    fd: OwnedFd,
    pipes: Arc<Pipes>,
}

/// The writable end (the other side's stdin). Closed by [`PipeWriter::close`] or drop.
#[derive(Debug)]
pub struct PipeWriter {
    fd: Option<OwnedFd>,
    pipes: Arc<Pipes>,
}

/// Binds the three pipes together. All become non-blocking.
///
/// # Errors
/// When a descriptor cannot be made non-blocking.
pub fn open(
    stdin: OwnedFd,
    stdout: OwnedFd,
    stderr: Option<OwnedFd>,
    kill: Arc<KillSwitch>,
) -> io::Result<(PipeReader, PipeWriter, Arc<Pipes>)> {
    set_nonblocking(stdin.as_raw_fd())?;
    set_nonblocking(stdout.as_raw_fd())?;
    if let Some(stderr) = &stderr {
        set_nonblocking(stderr.as_raw_fd())?;
    }
    let now = Instant::now();
    let pipes = Arc::new(Pipes {
        kill: Mutex::new(kill),
        wait: Mutex::new(Wait {
            phase: "starting",
            idle_max: Duration::from_secs(60),
            last_progress: now,
        }),
        stderr: Mutex::new(Stderr {
            fd: stderr,
            tail: VecDeque::new(),
            log: None,
            last_output: now,
        }),
    });
    let reader = PipeReader {
        fd: stdout,
        pipes: pipes.clone(),
    };
    let writer = PipeWriter {
        fd: Some(stdin),
        pipes: pipes.clone(),
    };
    Ok((reader, writer, pipes))
}

impl Pipes {
    /// Names what is being done from now on and how long it may stand still.
    pub fn enter(&self, phase: &'static str, idle_max: Duration) {
        heartbeat::enter(phase, Patience::Deadline(idle_max));
        *lock(&self.wait) = Wait {
            phase,
            idle_max,
            last_progress: Instant::now(),
        };
    }

    /// The switch that interrupts this conversation from now on.
    pub fn set_kill_switch(&self, kill: Arc<KillSwitch>) {
        *lock(&self.kill) = kill;
    }

    /// From now on stderr goes to this file too, at most `bytes_max` bytes of it (0: no limit).
    /// What came before is dropped: it is not this build's.
    pub fn start_log(&self, file: File, bytes_max: u64) {
        self.drain_stderr();
        let mut stderr = lock(&self.stderr);
        stderr.tail.clear();
        stderr.last_output = Instant::now();
        stderr.log = Some(Log {
            file,
            bytes: 0,
            bytes_max,
            over_limit: false,
            error: None,
        });
    }

    /// Ends the log: takes what is still in the pipe. With `silence`, waits until nothing has come for that
    /// long (ssh may hold back log bytes that the builder wrote before its reply).
    ///
    /// # Errors
    /// The first error of writing the file; its number of bytes otherwise.
    pub fn end_log(&self, silence: Option<Duration>) -> io::Result<u64> {
        self.drain_stderr();
        if let Some(silence) = silence {
            // A log that keeps coming after its reply is bounded by this many rounds of silence.
            for _ in 0..200 {
                let (fd, quiet_for) = {
                    let stderr = lock(&self.stderr);
                    (
                        stderr.fd.as_ref().map(|fd| fd.as_raw_fd()),
                        stderr.last_output.elapsed(),
                    )
                };
                let (Some(fd), Some(left)) = (fd, silence.checked_sub(quiet_for)) else {
                    break;
                };
                let mut polled = [pollfd(fd, libc::POLLIN)];
                poll(&mut polled, Some(left))?;
                self.drain_stderr();
            }
        }
        match lock(&self.stderr).log.take() {
            Some(Log {
                error: Some(error), ..
            }) => Err(error),
            Some(log) => Ok(log.bytes),
            None => Ok(0),
        }
    }

    /// The last of what came on stderr, for error messages: text without colours, trimmed.
    pub fn stderr_tail(&self) -> String {
        self.drain_stderr();
        let mut stderr = lock(&self.stderr);
        let bytes: &[u8] = stderr.tail.make_contiguous();
        crate::base::text::plain(&String::from_utf8_lossy(bytes))
            .trim()
            .to_owned()
    }

    /// Reads stderr until its end or until nothing has come for `wait`: what a program that gave up has to say.
    pub fn drain_to_end(&self, wait: Duration) {
        let until = Instant::now() + wait;
        while let Some(fd) = self.stderr_fd() {
            let Some(left) = until.checked_duration_since(Instant::now()) else {
                break;
            };
            let mut polled = [pollfd(fd, libc::POLLIN)];
            if poll(&mut polled, Some(left)).is_err() {
                break;
            }
            self.drain_stderr();
        }
    }

    fn stderr_fd(&self) -> Option<RawFd> {
        lock(&self.stderr).fd.as_ref().map(|fd| fd.as_raw_fd())
    }

    fn progress(&self) {
        lock(&self.wait).last_progress = Instant::now();
        heartbeat::progress();
    }

    /// Takes what is in the stderr pipe without waiting.
    fn drain_stderr(&self) {
        let mut stderr = lock(&self.stderr);
        let mut chunk = [0u8; STDERR_CHUNK_BYTES];
        for _ in 0..STDERR_CHUNKS_MAX {
            let Some(fd) = &stderr.fd else { break };
            match read_fd(fd.as_raw_fd(), &mut chunk) {
                Ok(0) => stderr.fd = None,
                Ok(n) => stderr.take(&chunk[..n]),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(_) => stderr.fd = None,
            }
        }
    }

    /// Waits until `fd` is ready, reading stderr meanwhile.
    fn wait_for(&self, fd: RawFd, events: i16) -> io::Result<()> {
        let kill = lock(&self.kill).clone();
        loop {
            if kill.is_thrown() {
                return Err(Interruption::Killed.into());
            }
            let (phase, idle_max, since) = {
                let wait = lock(&self.wait);
                (wait.phase, wait.idle_max, wait.last_progress.elapsed())
            };
            let Some(left) = idle_max.checked_sub(since) else {
                return Err(Interruption::Deadline {
                    phase,
                    secs: idle_max.as_secs(),
                }
                .into());
            };
            let stderr = self.stderr_fd().unwrap_or(-1);
            let mut polled = [
                pollfd(fd, events),
                pollfd(kill.fd(), libc::POLLIN),
                pollfd(stderr, libc::POLLIN),
            ];
            poll(&mut polled, Some(left))?;
            if polled[2].revents != 0 {
                self.drain_stderr();
            }
            if polled[0].revents != 0 {
                return Ok(());
            }
        }
    }

    /// Waits for the reply to a build request under the build's limits, writing the log meanwhile.
    ///
    /// # Errors
    /// [`Interruption::Killed`], or an error of polling.
    pub fn wait_for_reply(
        &self,
        reader: &PipeReader,
        limits: &BuildLimits,
    ) -> io::Result<ReplyWait> {
        // Watched by the build's own limits; without any it may take for ever.
        heartbeat::idle("building");
        let kill = lock(&self.kill).clone();
        let started = Instant::now();
        loop {
            if kill.is_thrown() {
                return Err(Interruption::Killed.into());
            }
            let (silent_for, over_limit) = {
                let stderr = lock(&self.stderr);
                (
                    stderr.last_output.max(started).elapsed(),
                    stderr.log.as_ref().is_some_and(|log| log.over_limit),
                )
            };
            if over_limit {
                return Ok(ReplyWait::LogLimit);
            }
            let mut left = None;
            if let Some(total) = limits.total {
                match total.checked_sub(started.elapsed()) {
                    None => return Ok(ReplyWait::TimedOut),
                    some => left = some,
                }
            }
            if let Some(silence) = limits.silence {
                match silence.checked_sub(silent_for) {
                    None => return Ok(ReplyWait::Silent),
                    Some(some) => left = Some(left.map_or(some, |left| left.min(some))),
                }
            }
            let stderr = self.stderr_fd().unwrap_or(-1);
            let mut polled = [
                pollfd(reader.fd.as_raw_fd(), libc::POLLIN),
                pollfd(kill.fd(), libc::POLLIN),
                pollfd(stderr, libc::POLLIN),
            ];
            poll(&mut polled, left)?;
            if polled[2].revents != 0 {
                self.drain_stderr();
            }
            if polled[0].revents != 0 {
                let over_limit = lock(&self.stderr)
                    .log
                    .as_ref()
                    .is_some_and(|log| log.over_limit);
                return Ok(if over_limit {
                    ReplyWait::LogLimit
                } else {
                    ReplyWait::Ready
                });
            }
        }
    }
}

impl Stderr {
    fn take(&mut self, bytes: &[u8]) {
        self.last_output = Instant::now();
        let excess = (self.tail.len() + bytes.len()).saturating_sub(TAIL_BYTES_MAX);
        self.tail.drain(..excess.min(self.tail.len()));
        self.tail
            .extend(&bytes[bytes.len().saturating_sub(TAIL_BYTES_MAX)..]);
        if let Some(log) = &mut self.log {
            log.take(bytes);
        }
    }
}

impl Log {
    fn take(&mut self, bytes: &[u8]) {
        let room = if self.bytes_max == 0 {
            u64::MAX
        } else {
            self.bytes_max - self.bytes
        };
        let keep = bytes.len().min(usize::try_from(room).unwrap_or(usize::MAX));
        if keep < bytes.len() {
            self.over_limit = true;
        }
        if self.error.is_none() {
            let write = || self.file.write_all(&bytes[..keep]);
            if let Err(error) = heartbeat::during("writing the log", Patience::Watchdog, write) {
                self.error = Some(error);
            }
        }
        self.bytes += keep as u64;
    }
}

impl PipeReader {
    /// True once the other side has something to say or has gone: what an idle connection must not have.
    pub fn is_ready(&self) -> bool {
        let mut polled = [pollfd(self.fd.as_raw_fd(), libc::POLLIN)];
        poll(&mut polled, Some(Duration::ZERO)).is_err() || polled[0].revents != 0
    }
}

impl Read for PipeReader {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        loop {
            match read_fd(self.fd.as_raw_fd(), buffer) {
                Ok(n) => {
                    self.pipes.progress();
                    return Ok(n);
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    self.pipes.wait_for(self.fd.as_raw_fd(), libc::POLLIN)?;
                }
                Err(error) => return Err(error),
            }
        }
    }
}

impl PipeWriter {
    /// Closes the other side's stdin: the polite end of a conversation, and the quickest end of a build.
    pub fn close(&mut self) {
        self.fd = None;
    }
}

impl Write for PipeWriter {
    fn write(&mut self, buffer: &[u8]) -> io::Result<usize> {
        let Some(fd) = &self.fd else {
            return Err(io::ErrorKind::BrokenPipe.into());
        };
        loop {
            // SAFETY: the pointer and length describe `buffer`.
            let n = unsafe { libc::write(fd.as_raw_fd(), buffer.as_ptr().cast(), buffer.len()) };
            if n >= 0 {
                self.pipes.progress();
                return Ok(n as usize);
            }
            let error = io::Error::last_os_error();
            match error.kind() {
                io::ErrorKind::WouldBlock => self.pipes.wait_for(fd.as_raw_fd(), libc::POLLOUT)?,
                io::ErrorKind::Interrupted => {}
                _ => return Err(error),
            }
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn pollfd(fd: RawFd, events: i16) -> libc::pollfd {
    libc::pollfd {
        fd,
        events,
        revents: 0,
    }
}

/// Polls, rounding the time up to a millisecond. `EINTR` counts as nothing ready.
fn poll(fds: &mut [libc::pollfd], left: Option<Duration>) -> io::Result<()> {
    let timeout = match left {
        None => -1,
        Some(left) => i32::try_from(left.as_micros().div_ceil(1000)).unwrap_or(i32::MAX),
    };
    // SAFETY: the pointer and length describe `fds`.
    if unsafe { libc::poll(fds.as_mut_ptr(), fds.len() as libc::nfds_t, timeout) } >= 0 {
        return Ok(());
    }
    let error = io::Error::last_os_error();
    if error.kind() == io::ErrorKind::Interrupted {
        return Ok(());
    }
    Err(error)
}

fn read_fd(fd: RawFd, buffer: &mut [u8]) -> io::Result<usize> {
    loop {
        // SAFETY: the pointer and length describe `buffer`.
        let n = unsafe { libc::read(fd, buffer.as_mut_ptr().cast(), buffer.len()) };
        if n >= 0 {
            return Ok(n as usize);
        }
        let error = io::Error::last_os_error();
        if error.kind() != io::ErrorKind::Interrupted {
            return Err(error);
        }
    }
}

fn set_nonblocking(fd: RawFd) -> io::Result<()> {
    // SAFETY: fcntl with these commands has no memory arguments.
    let flags = unsafe { libc::fcntl(fd, libc::F_GETFL) };
    if flags < 0 || unsafe { libc::fcntl(fd, libc::F_SETFL, flags | libc::O_NONBLOCK) } < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pair() -> (OwnedFd, OwnedFd) {
        let (reader, writer) = io::pipe().expect("a pipe");
        (reader.into(), writer.into())
    }

    struct Other {
        stdout: File,
        stderr: File,
        stdin: File,
    }

    fn conversation() -> (PipeReader, PipeWriter, Arc<Pipes>, Arc<KillSwitch>, Other) {
        let (their_stdin, our_stdin) = pair();
        let (our_stdout, their_stdout) = pair();
        let (our_stderr, their_stderr) = pair();
        let kill = Arc::new(KillSwitch::new().expect("an eventfd"));
        let (reader, writer, pipes) =
            open(our_stdin, our_stdout, Some(our_stderr), kill.clone()).expect("pipes");
        let other = Other {
            stdout: their_stdout.into(),
            stderr: their_stderr.into(),
            stdin: their_stdin.into(),
        };
        (reader, writer, pipes, kill, other)
    }

    #[test]
    fn a_deadline_names_its_phase() {
        let (mut reader, _writer, pipes, _kill, _other) = conversation();
        pipes.enter("waiting for the greeting", Duration::from_millis(5));
        let error = reader.read(&mut [0; 8]).expect_err("nothing comes");
        assert_eq!(
            interruption(&error),
            Some(&Interruption::Deadline {
                phase: "waiting for the greeting",
                secs: 0
            })
        );
    }

    #[test]
    fn a_thrown_switch_interrupts_a_wait() {
        let (mut reader, _writer, _pipes, kill, _other) = conversation();
        let thrower = std::thread::spawn(move || kill.throw());
        let error = reader.read(&mut [0; 8]).expect_err("interrupted");
        assert_eq!(interruption(&error), Some(&Interruption::Killed));
        thrower.join().expect("thrown");
    }

    #[test]
    fn stderr_beyond_the_pipe_never_blocks_the_other_side() {
        let (mut reader, mut writer, pipes, _kill, mut other) = conversation();
        let log = tempfile::tempfile().expect("a file");
        pipes.start_log(log.try_clone().expect("a copy"), 0);
        let writer_thread = std::thread::spawn(move || {
            let mut request = [0; 3];
            other.stdin.read_exact(&mut request).expect("the request");
            for _ in 0..64 {
                other.stderr.write_all(&[b'x'; 65536]).expect("taken");
            }
            other.stdout.write_all(b"done").expect("taken");
        });
        writer.write_all(b"go!").expect("sent");
        let mut reply = [0; 4];
        reader.read_exact(&mut reply).expect("a reply");
        assert_eq!(&reply, b"done");
        assert_eq!(pipes.end_log(None).expect("a log"), 64 * 65536);
        writer_thread.join().expect("finished");
        assert_eq!(log.metadata().expect("metadata").len(), 64 * 65536);
    }

    #[test]
    fn limits_of_a_build_are_ours() {
        let (reader, _writer, pipes, _kill, mut other) = conversation();
        let limits = |total, silence| BuildLimits {
            total,
            silence,
            log_bytes_max: 0,
        };
        let short = Some(Duration::from_millis(2));
        assert_eq!(
            pipes
                .wait_for_reply(&reader, &limits(short, None))
                .expect("ok"),
            ReplyWait::TimedOut
        );
        assert_eq!(
            pipes
                .wait_for_reply(&reader, &limits(None, short))
                .expect("ok"),
            ReplyWait::Silent
        );
        pipes.start_log(tempfile::tempfile().expect("a file"), 10);
        other.stderr.write_all(b"eleven bytes").expect("taken");
        assert_eq!(
            pipes
                .wait_for_reply(&reader, &limits(None, None))
                .expect("ok"),
            ReplyWait::LogLimit
        );
        assert_eq!(pipes.end_log(None).expect("a log"), 10);
        other.stdout.write_all(b"x").expect("taken");
        assert_eq!(
            pipes
                .wait_for_reply(&reader, &limits(None, None))
                .expect("ok"),
            ReplyWait::Ready
        );
    }
}
