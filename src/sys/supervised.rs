//! A child that works for a long time, in a session of its own: what it says is taken as it comes, it is ended in order when
//! that is asked for, nothing of it is left behind, and it does not outlive us.
//!
//! The kernel ends the child when the *thread* that started it does, so whoever starts one also watches it.

use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use super::cgroup::Group;
use super::child;
use super::kill::KillSwitch;
use super::session;

/// How often it is looked whether it has ended where the kernel has no descriptor for that (before Linux 5.3).
const LOOK_EVERY: Duration = Duration::from_millis(50);
/// Without anything to do.
const PAUSE_MAX: Duration = Duration::from_secs(1);
/// Bytes read at once, and at most after its end (somebody else may go on writing).
const READ_BYTES: usize = 64 << 10;
const LAST_BYTES_MAX: usize = 16 << 20;
/// So long after SIGKILL it should be gone.
const KILL_PATIENCE: Duration = Duration::from_secs(5);

/// What it says, as it comes.
pub enum Said<'a> {
    /// On standard output or standard error, in the order of writing.
    Output(&'a [u8]),
    /// On the descriptor that the variable names.
    Progress(&'a [u8]),
}

/// How it ended.
#[derive(Debug)]
pub struct End {
    pub status: ExitStatus,
    /// Of its largest process, of those that it has waited for.
    pub memory_bytes_max: u64,
    /// Processes it left behind, which were ended.
    pub left_behind: usize,
}

/// One that runs.
#[derive(Debug)]
pub struct Supervised {
    pid: u32,
    output: File,
    progress: File,
    /// Readable when it has ended.
    ended: Option<OwnedFd>,
}

/// Starts a program. `oom_score` says how readily the kernel ends it and what it starts when memory is short; the number of a
/// descriptor for its progress is in the variable of that name.
///
/// # Errors
/// What the system says of starting it; name the program when passing it on.
pub fn start(
    mut command: Command,
    progress_variable: &str,
    oom_score: i32,
    group: Option<&Group>,
) -> io::Result<Supervised> {
    let (output, output_end) = pipe()?;
    let (progress, progress_end) = pipe()?;
    for reader in [output.as_raw_fd(), progress.as_raw_fd()] {
        // SAFETY: fcntl with this command has no memory arguments.
        if unsafe { libc::fcntl(reader, libc::F_SETFL, libc::O_NONBLOCK) } < 0 {
            return Err(io::Error::last_os_error());
        }
    }
    let progress_fd = progress_end.as_raw_fd();
    let score = oom_score.to_string().into_bytes();
    let entrance = group.map(Group::entrance);
    child::without_ours(&mut command)
        .env(progress_variable, progress_fd.to_string())
        .stdin(Stdio::null())
        .stdout(output_end.try_clone()?)
        .stderr(output_end);
    let us = std::process::id();
    // SAFETY: between fork and exec only calls that are allowed there are made, and no memory is allocated.
    unsafe {
        command.pre_exec(move || {
            if libc::setsid() < 0 || libc::fcntl(progress_fd, libc::F_SETFD, 0) < 0 {
                return Err(io::Error::last_os_error());
            }
            libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL);
            // We may have gone before that was said.
            if libc::getppid() != us as i32 {
                libc::_exit(1);
            }
            // What the system refuses here is no reason not to start.
            write_file(c"/proc/self/oom_score_adj", &score);
            if let Some(entrance) = &entrance {
                write_file(entrance, b"0");
            }
            Ok(())
        });
    }
    let child = command.spawn()?;
    let pid = child.id();
    // SAFETY: pidfd_open has no memory arguments; the result is checked before it is owned.
    let ended = unsafe {
        let fd = libc::syscall(libc::SYS_pidfd_open, pid as libc::pid_t, 0);
        (fd >= 0).then(|| OwnedFd::from_raw_fd(fd as RawFd))
    };
    // `command` and with it the other ends of the pipes go now.
    Ok(Supervised {
        pid,
        output,
        progress,
        ended,
    })
}

/// The end that is read and the one that is written; no other child gets them.
fn pipe() -> io::Result<(File, OwnedFd)> {
    let mut fds = [0; 2];
    // SAFETY: the array has room for both; the result is checked before they are owned.
    unsafe {
        if libc::pipe2(fds.as_mut_ptr(), libc::O_CLOEXEC) < 0 {
            return Err(io::Error::last_os_error());
        }
        Ok((File::from_raw_fd(fds[0]), OwnedFd::from_raw_fd(fds[1])))
    }
}

/// Writes a file of the kernel's, between fork and exec.
fn write_file(path: &std::ffi::CStr, bytes: &[u8]) {
    // SAFETY: the path is terminated, the bytes live through the call, and the descriptor is closed by whoever opened it.
    unsafe {
        let fd = libc::open(path.as_ptr(), libc::O_WRONLY | libc::O_CLOEXEC);
        if fd >= 0 {
            libc::write(fd, bytes.as_ptr().cast(), bytes.len());
            libc::close(fd);
        }
    }
}

impl Supervised {
    pub fn pid(&self) -> u32 {
        self.pid
    }

    /// Watches it to its end. When the switch is thrown it gets SIGTERM, and after `patience` SIGKILL, with all of its
    /// session and group.
    pub fn watch(
        mut self,
        kill: &KillSwitch,
        patience: &dyn Fn() -> Duration,
        group: Option<&Group>,
        mut hear: impl FnMut(Said<'_>),
    ) -> End {
        // When the next means are used to end it, and how many have been.
        let mut means: Option<(Instant, u32)> = None;
        let mut told_at = Instant::now();
        let mut open = (true, true);
        let mut buffer = vec![0; READ_BYTES];
        while !self.has_ended() {
            self.wait(kill, means, open);
            if open.0 {
                open.0 = read_some(&mut self.output, &mut buffer, |b| hear(Said::Output(b)));
            }
            if open.1 {
                open.1 = read_some(&mut self.progress, &mut buffer, |b| {
                    hear(Said::Progress(b));
                });
            }
            if means.is_none() && kill.is_thrown() {
                // SAFETY: kill has no memory arguments; the group is our child's, which has not been waited for.
                unsafe { libc::kill(-(self.pid as i32), libc::SIGTERM) };
                told_at = Instant::now();
                means = Some((told_at, 1));
            }
            if let Some((at, 1)) = &mut means {
                // It may have become shorter.
                *at = told_at + patience();
            }
            if let Some((at, used)) = means.filter(|(at, _)| *at <= Instant::now()) {
                if used > 1 {
                    log::warn!("process {} does not end, not even by SIGKILL", self.pid);
                }
                session::signal(self.pid, libc::SIGKILL);
                if let Some(group) = group {
                    group.kill();
                }
                means = Some((at + KILL_PATIENCE * (1 << used.min(8)), used + 1));
            }
        }
        for (is_open, is_output) in [(open.0, true), (open.1, false)] {
            let reader = match is_output {
                true => &mut self.output,
                false => &mut self.progress,
            };
            let mut bytes = 0;
            while is_open && bytes < LAST_BYTES_MAX {
                let before = bytes;
                read_some(reader, &mut buffer, |piece| {
                    bytes += piece.len();
                    hear(match is_output {
                        true => Said::Output(piece),
                        false => Said::Progress(piece),
                    });
                });
                if bytes == before {
                    break;
                }
            }
        }
        let left_behind = session::signal(self.pid, libc::SIGKILL);
        if let Some(group) = group {
            group.kill();
        }
        let (status, memory_bytes_max) = self.reap();
        End {
            status,
            memory_bytes_max,
            left_behind,
        }
    }

    /// Whether it has; it is not taken away yet, so that its number stays its own.
    fn has_ended(&self) -> bool {
        // SAFETY: all zeros is a value of this structure, and the call fills it.
        unsafe {
            let mut info: libc::siginfo_t = std::mem::zeroed();
            let flags = libc::WEXITED | libc::WNOHANG | libc::WNOWAIT;
            let result = libc::waitid(libc::P_PID, self.pid, &mut info, flags);
            // Nobody else waits for it; an error means that it is gone.
            result < 0 && io::Error::last_os_error().kind() != io::ErrorKind::Interrupted
                || result == 0 && info.si_pid() != 0
        }
    }

    /// Waits until there is something to do.
    fn wait(&self, kill: &KillSwitch, means: Option<(Instant, u32)>, open: (bool, bool)) {
        let poll = |fd: RawFd, wanted: bool| libc::pollfd {
            fd: if wanted { fd } else { -1 },
            events: libc::POLLIN,
            revents: 0,
        };
        let ended = self.ended.as_ref().map(AsRawFd::as_raw_fd);
        let mut fds = [
            poll(self.output.as_raw_fd(), open.0),
            poll(self.progress.as_raw_fd(), open.1),
            poll(ended.unwrap_or(-1), ended.is_some()),
            poll(kill.fd(), means.is_none()),
        ];
        let mut pause = match ended {
            Some(_) => PAUSE_MAX,
            None => LOOK_EVERY,
        };
        if let Some((at, _)) = means {
            pause = pause.min(at.saturating_duration_since(Instant::now()));
        }
        let pause = i32::try_from(pause.as_millis()).unwrap_or(i32::MAX).max(1);
        // SAFETY: the array lives through the call.
        unsafe { libc::poll(fds.as_mut_ptr(), fds.len() as libc::nfds_t, pause) };
    }

    fn reap(&self) -> (ExitStatus, u64) {
        let mut status = 0;
        // SAFETY: all zeros is a value of this structure, and the call fills both.
        let usage = unsafe {
            let mut usage: libc::rusage = std::mem::zeroed();
            while libc::wait4(self.pid as i32, &mut status, 0, &mut usage) < 0 {
                if io::Error::last_os_error().kind() != io::ErrorKind::Interrupted {
                    break;
                }
            }
            usage
        };
        let kilobytes = u64::try_from(usage.ru_maxrss).unwrap_or(0);
        (ExitStatus::from_raw(status), kilobytes.saturating_mul(1024))
    }
}

/// Reads what is there, but not without end; false once there will be no more.
fn read_some(reader: &mut impl Read, buffer: &mut [u8], mut hear: impl FnMut(&[u8])) -> bool {
    match reader.read(buffer) {
        Ok(0) => false,
        Ok(bytes) => {
            hear(&buffer[..bytes]);
            true
        }
        Err(error) => matches!(
            error.kind(),
            io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sh(script: &str) -> (Supervised, KillSwitch) {
        let mut command = Command::new("sh");
        command.args(["-c", script]);
        let child = start(command, "PROGRESS_FD", 300, None).expect("sh");
        (child, KillSwitch::new().expect("a switch"))
    }

    fn watch(child: Supervised, kill: &KillSwitch) -> (End, String, String) {
        let (mut output, mut progress) = (Vec::new(), Vec::new());
        let end = child.watch(kill, &|| Duration::from_millis(100), None, |said| {
            match said {
                Said::Output(bytes) => output.extend_from_slice(bytes),
                Said::Progress(bytes) => progress.extend_from_slice(bytes),
            }
            // One that is ready to be ended says so.
            if output.ends_with(b"ready\n") {
                kill.throw();
            }
        });
        let text = |bytes: Vec<u8>| String::from_utf8(bytes).expect("text");
        (end, text(output), text(progress))
    }

    #[test]
    fn everything_it_says_is_heard_and_how_it_ended() {
        let script = "cat /proc/self/oom_score_adj; echo out; echo err >&2; eval \"echo half >&$PROGRESS_FD\"; exit 3";
        let (child, kill) = sh(script);
        let (end, output, progress) = watch(child, &kill);
        assert_eq!(output, "300\nout\nerr\n");
        assert_eq!(progress, "half\n");
        assert_eq!((end.status.code(), end.left_behind), (Some(3), 0));
        assert!(end.memory_bytes_max > 100_000, "{end:?}");
    }

    #[test]
    fn one_that_ignores_sigterm_is_killed_with_all_it_has_started() {
        // The grandchild makes a process group of its own, and survives its parent.
        let (child, kill) =
            sh("trap '' TERM; perl -e 'setpgrp; sleep 1000' & echo ready; sleep 1000");
        let pid = child.pid();
        let (end, _, _) = watch(child, &kill);
        assert_eq!(end.status.signal(), Some(libc::SIGKILL));
        assert_eq!(session::members(pid), [0; 0]);
    }

    #[test]
    fn what_it_leaves_behind_is_ended() {
        let (child, kill) = sh("sleep 1000 & exit 0");
        let pid = child.pid();
        let (end, _, _) = watch(child, &kill);
        assert_eq!((end.status.code(), end.left_behind), (Some(0), 1));
        assert_eq!(session::members(pid), [0; 0]);
    }
}
