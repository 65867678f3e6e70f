//! Child processes that talk over pipes, and their end.

use std::fs::File;
use std::io::{self, Read, Seek, Write};
use std::os::fd::{FromRawFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::process::{Child, ChildStderr, ChildStdin, ChildStdout, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use crate::base::text::bytes_text;

/// How long a child has between one step of being ended and the next.
const END_STEP: Duration = Duration::from_secs(5);

/// Variables that mean us and nobody we start. With IN_SYSTEMD Nix puts journal levels into its words.
const OURS_ALONE: [&str; 7] = [
    "LISTEN_FDNAMES",
    "LISTEN_FDS",
    "LISTEN_PID",
    "NOTIFY_SOCKET",
    "WATCHDOG_USEC",
    "WATCHDOG_PID",
    "IN_SYSTEMD",
];

/// Takes away the variables that mean us and nobody we start.
pub fn without_ours(command: &mut Command) -> &mut Command {
    for ours in OURS_ALONE {
        command.env_remove(ours);
    }
    command
}

/// A child in a process group of its own.
#[derive(Debug)]
pub struct PipedChild {
    child: Child,
    status: Option<ExitStatus>,
}

/// The child's stdin, stdout and stderr as we hold them.
#[derive(Debug)]
pub struct ChildPipes {
    pub stdin: OwnedFd,
    pub stdout: OwnedFd,
    pub stderr: OwnedFd,
}

/// Starts a program with pipes on all three.
///
/// # Errors
/// What the system says of starting it; name the program when passing it on.
pub fn spawn(command: &mut Command) -> io::Result<(PipedChild, ChildPipes)> {
    without_ours(command)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .process_group(0);
    let mut child = command.spawn()?;
    let pipes = match (child.stdin.take(), child.stdout.take(), child.stderr.take()) {
        (Some(stdin), Some(stdout), Some(stderr)) => ChildPipes {
            stdin: stdin.into(),
            stdout: stdout.into(),
            stderr: stderr.into(),
        },
        _ => unreachable!("BUG: a child spawned with pipes has pipes"),
    };
    Ok((
        PipedChild {
            child,
            status: None,
        },
        pipes,
    ))
}

/// Starts a program whose output nobody reads, with pipes to its stdin and from its stderr. It ends with the thread that starts
/// it, however that ends, so a loop in it outlives nobody.
///
/// # Errors
/// What the system says of starting it; name the program when passing it on.
pub fn spawn_heard(command: &mut Command) -> io::Result<(PipedChild, ChildStdin, ChildStderr)> {
    command.stdin(Stdio::piped()).stdout(Stdio::null());
    let mut child = spawn_mortal(command)?;
    match (child.child.stdin.take(), child.child.stderr.take()) {
        (Some(stdin), Some(stderr)) => Ok((child, stdin, stderr)),
        _ => unreachable!("BUG: a child spawned with pipes has pipes"),
    }
}

/// The same for a program that has nothing to read, with pipes from its stdout and stderr.
///
/// # Errors
/// As [`spawn_heard`].
pub fn spawn_read(command: &mut Command) -> io::Result<(PipedChild, ChildStdout, ChildStderr)> {
    command.stdin(Stdio::null()).stdout(Stdio::piped());
    let mut child = spawn_mortal(command)?;
    match (child.child.stdout.take(), child.child.stderr.take()) {
        (Some(stdout), Some(stderr)) => Ok((child, stdout, stderr)),
        _ => unreachable!("BUG: a child spawned with pipes has pipes"),
    }
}

fn spawn_mortal(command: &mut Command) -> io::Result<PipedChild> {
    for ours in OURS_ALONE {
        command.env_remove(ours);
    }
    command.stderr(Stdio::piped()).process_group(0);
    let child = ends_with_thread(command).spawn()?;
    Ok(PipedChild {
        child,
        status: None,
    })
}

/// Lets the kernel end a program when the thread that starts it ends, however that ends: for what nobody needs then.
pub fn ends_with_thread(command: &mut Command) -> &mut Command {
    // SAFETY: prctl is one system call on plain numbers, allowed between fork and exec.
    unsafe {
        command.pre_exec(
            || match libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) {
                0 => Ok(()),
                _ => Err(io::Error::last_os_error()),
            },
        )
    }
}

/// How a program ended that was given its input at once.
#[derive(Debug)]
pub struct Ended {
    pub status: Option<ExitStatus>,
    /// It had to be ended.
    pub late: bool,
    /// The beginning of what it said on stderr.
    pub words: String,
}

/// Bytes of a program's words that are kept.
const WORDS_MAX: u64 = 4_096;

/// Runs a program to its end with this input, for `time_max` at most. Input and words lie in memory, so that neither side
/// can wait for the other.
///
/// # Errors
/// What the system says of starting it; name the program when passing it on.
pub fn run_with_input(
    command: &mut Command,
    input: &[u8],
    time_max: Duration,
) -> io::Result<Ended> {
    let mut given = memory_file()?;
    given.write_all(input)?;
    given.rewind()?;
    let mut words = memory_file()?;
    let child = without_ours(command)
        .stdin(given)
        .stdout(Stdio::null())
        .stderr(words.try_clone()?)
        .process_group(0)
        .spawn()?;
    let began = Instant::now();
    let mut child = PipedChild {
        child,
        status: None,
    };
    let status = child.end(time_max);
    let late = began.elapsed() >= time_max;
    words.rewind()?;
    let mut bytes = Vec::new();
    words.take(WORDS_MAX).read_to_end(&mut bytes)?;
    Ok(Ended {
        status,
        late,
        words: String::from_utf8_lossy(&bytes).trim().to_owned(),
    })
}

/// How often a child that is waited for is looked after beside its own end.
const LOOK_EVERY: Duration = Duration::from_millis(200);

/// Runs a program to its end with nothing to read and its words in a file, for `time_max` at most or until `stopping`; then its
/// process group is ended.
///
/// # Errors
/// What the system says of starting it; name the program when passing it on.
pub fn run_logged(
    command: &mut Command,
    log: &File,
    time_max: Duration,
    stopping: &dyn Fn() -> bool,
) -> io::Result<Ended> {
    let (status, late) = run_watched(command, (log, log), u64::MAX, time_max, stopping)?;
    Ok(Ended {
        status,
        late,
        words: String::new(),
    })
}

/// How a program ended whose output was wanted.
#[derive(Debug)]
pub struct Captured {
    pub status: Option<ExitStatus>,
    /// It had to be ended.
    pub late: bool,
    pub output: Vec<u8>,
    /// The end of what it said on stderr.
    pub words: String,
}

/// Bytes of a program's output, and of its words: they are in memory, and may come from the other end of the world.
const OUTPUT_BYTES_MAX: u64 = 128 << 20;
const LAST_WORDS_MAX: u64 = 64 << 10;

/// As [`run_logged`], with output and words apart and in memory. A program that writes too much is ended.
///
/// # Errors
/// What the system says of starting it, or that it wrote too much; [`describe_trouble`] puts either into words.
pub fn capture(
    command: &mut Command,
    time_max: Duration,
    stopping: &dyn Fn() -> bool,
) -> io::Result<Captured> {
    let (mut output, mut words) = (memory_file()?, memory_file()?);
    let files = (&output, &words);
    let (status, late) = run_watched(command, files, OUTPUT_BYTES_MAX, time_max, stopping)?;
    output.rewind()?;
    let mut bytes = Vec::new();
    // What it left running may still write.
    output.take(OUTPUT_BYTES_MAX).read_to_end(&mut bytes)?;
    let length = words.seek(io::SeekFrom::End(0))?;
    words.seek(io::SeekFrom::Start(length.saturating_sub(LAST_WORDS_MAX)))?;
    let mut said = Vec::new();
    words.take(LAST_WORDS_MAX).read_to_end(&mut said)?;
    Ok(Captured {
        status,
        late,
        output: bytes,
        words: String::from_utf8_lossy(&said).trim().to_owned(),
    })
}

/// The status, and whether it had to be ended. That one of the files is too large is an error of the kind `FileTooLarge`.
fn run_watched(
    command: &mut Command,
    (output, words): (&File, &File),
    bytes_max: u64,
    time_max: Duration,
    stopping: &dyn Fn() -> bool,
) -> io::Result<(Option<ExitStatus>, bool)> {
    let child = without_ours(command)
        .stdin(Stdio::null())
        .stdout(output.try_clone()?)
        .stderr(words.try_clone()?)
        .process_group(0)
        .spawn()?;
    let until = Instant::now() + time_max;
    let mut child = PipedChild {
        child,
        status: None,
    };
    let exceeds = |bytes: u64| {
        let longer = |file: &File| file.metadata().is_ok_and(|file| file.len() > bytes);
        longer(output) || longer(words)
    };
    let mut status = None;
    let mut much = false;
    while status.is_none() && !much && Instant::now() < until && !stopping() {
        status = child.wait_until(until.min(Instant::now() + LOOK_EVERY));
        much = exceeds(bytes_max);
    }
    let late = status.is_none();
    // Who goes on writing as it is asked to end is not given the time for it.
    let patient = || !exceeds(bytes_max.saturating_mul(2));
    let status = status.or_else(|| child.end_group(&patient));
    match much {
        true => Err(io::Error::new(
            io::ErrorKind::FileTooLarge,
            format!("wrote more than {}", bytes_text(bytes_max)),
        )),
        false => Ok((status, late)),
    }
}

/// A file without a name, in memory.
fn memory_file() -> io::Result<File> {
    // SAFETY: the name is a NUL-terminated literal.
    let fd = unsafe { libc::memfd_create(c"hydrad".as_ptr(), libc::MFD_CLOEXEC) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the descriptor is new and nobody else's.
    Ok(unsafe { File::from_raw_fd(fd) })
}

impl PipedChild {
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Waits for the end of a child whose stdin is closed: a while for it to leave by itself, then SIGTERM to
    /// its group, then SIGKILL. Never SIGKILL first: that leaves a builder running without its lock.
    pub fn end(&mut self, patience: Duration) -> Option<ExitStatus> {
        if let Some(status) = self.wait_until(Instant::now() + patience) {
            return Some(status);
        }
        for signal in [libc::SIGTERM, libc::SIGKILL] {
            self.signal_group(signal);
            if let Some(status) = self.wait_until(Instant::now() + END_STEP) {
                return Some(status);
            }
        }
        log::warn!("process {} does not end, not even by SIGKILL", self.pid());
        None
    }

    /// Ends its whole group at once: for what cannot be asked, and builds nothing.
    pub fn kill(&mut self) -> Option<ExitStatus> {
        if self.status.is_none() {
            self.signal_group(libc::SIGKILL);
        }
        self.wait_until(Instant::now() + END_STEP)
    }

    /// Ends its whole group: SIGTERM, a while for the child, as long as we are `patient`, then SIGKILL for whoever is left, also if
    /// the child itself went at once. It is waited for only then, so that the group's number cannot have become somebody else's.
    fn end_group(&mut self, patient: &dyn Fn() -> bool) -> Option<ExitStatus> {
        self.signal_group(libc::SIGTERM);
        let until = Instant::now() + END_STEP;
        while !self.has_ended() && Instant::now() < until && patient() {
            std::thread::sleep(Duration::from_millis(5));
        }
        let status = self.kill();
        if status.is_none() {
            log::warn!("process {} does not end, not even by SIGKILL", self.pid());
        }
        status
    }

    /// Whether it has ended; it stays to be waited for.
    fn has_ended(&self) -> bool {
        // SAFETY: siginfo_t is plain data; waitid writes into it and nothing else.
        unsafe {
            let mut info: libc::siginfo_t = std::mem::zeroed();
            let how = libc::WEXITED | libc::WNOHANG | libc::WNOWAIT;
            let result = libc::waitid(libc::P_PID, self.pid(), &raw mut info, how);
            result != 0 || info.si_pid() != 0
        }
    }

    fn signal_group(&self, signal: i32) {
        // SAFETY: kill has no memory arguments; the group is our child's own and not yet reaped.
        unsafe { libc::kill(-(self.pid() as i32), signal) };
    }

    /// Polls for the end with growing pauses (0.2 ms to 20 ms): there is no portable wait with a deadline.
    fn wait_until(&mut self, until: Instant) -> Option<ExitStatus> {
        let mut pause = Duration::from_micros(200);
        loop {
            if self.status.is_some() {
                return self.status;
            }
            match self.child.try_wait() {
                Ok(Some(status)) => self.status = Some(status),
                Ok(None) if Instant::now() >= until => return None,
                Ok(None) => {
                    std::thread::sleep(pause);
                    pause = (pause * 2).min(Duration::from_millis(20));
                }
                Err(_) => return None,
            }
        }
    }
}

impl Drop for PipedChild {
    fn drop(&mut self) {
        if self.status.is_none() {
            self.end(END_STEP);
        }
    }
}

/// What the system says of an error, without Rust's "(os error 2)".
pub fn plain_error(error: &io::Error) -> String {
    let text = error.to_string();
    match text.rfind(" (os error ") {
        Some(at) => text[..at].to_owned(),
        None => text,
    }
}

/// Why [`capture`] has nothing of a program, in words.
pub fn describe_trouble(program: &str, error: &io::Error) -> String {
    match error.kind() {
        io::ErrorKind::FileTooLarge => format!("{program} {error}"),
        _ => format!("cannot start {program}: {}", plain_error(error)),
    }
}

/// How a program ended, in words.
pub fn describe_status(status: ExitStatus) -> String {
    use std::os::unix::process::ExitStatusExt;
    match (status.code(), status.signal()) {
        (Some(code), _) => format!("exit code {code}"),
        (None, Some(signal)) => format!("killed by signal {signal}"),
        (None, None) => status.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What comes of a shell's script that may write 1 MiB into each file.
    fn watched(script: &str) -> Result<bool, String> {
        let (output, words) = (
            memory_file().expect("a file"),
            memory_file().expect("a file"),
        );
        let (mut command, time_max) = (Command::new("sh"), Duration::from_secs(60));
        command.args(["-c", script]);
        run_watched(&mut command, (&output, &words), 1 << 20, time_max, &|| {
            false
        })
        .map(|(status, _)| status.is_some_and(|status| status.success()))
        .map_err(|error| describe_trouble("sh", &error))
    }

    #[test]
    fn who_writes_without_end_is_ended() {
        let much = Err("sh wrote more than 1 MiB".to_owned());
        let began = Instant::now();
        let endless = "while :; do head -c 65536 /dev/zero; done";
        assert_eq!(watched(endless), much);
        assert_eq!(watched(&format!("trap '' TERM; {endless} >&2")), much);
        assert!(began.elapsed() < Duration::from_secs(50));
        // Also if it was faster than our looks.
        assert_eq!(watched("head -c 1048577 /dev/zero"), much);
        assert_eq!(watched("head -c 1048576 /dev/zero"), Ok(true));
    }

    #[test]
    fn what_cannot_be_started_is_told_as_that() {
        let error = capture(
            &mut Command::new("/nowhere"),
            Duration::from_secs(1),
            &|| false,
        )
        .expect_err("it is not there");
        let words = describe_trouble("/nowhere", &error);
        assert_eq!(words, "cannot start /nowhere: No such file or directory");
    }
}
