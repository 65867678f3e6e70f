//! Child processes that never outlive the tests, and waiting for conditions.

use std::fs::File;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc::{channel, Sender};
use std::sync::{Mutex, OnceLock};
use std::time::{Duration, Instant};

/// How long a condition may take before a test fails. Generous: the machine may be shared.
pub fn patience() -> Duration {
    let secs = std::env::var("HYDRAD_TEST_PATIENCE")
        .ok()
        .and_then(|v| v.parse().ok())
        .unwrap_or(60);
    Duration::from_secs(secs)
}

/// Ask until there is an answer; panic with `what` if there is none within [`patience`].
pub fn eventually<T>(what: &str, mut ask: impl FnMut() -> Option<T>) -> T {
    let started = Instant::now();
    loop {
        if let Some(answer) = ask() {
            return answer;
        }
        assert!(
            started.elapsed() < patience(),
            "waited {} s in vain: {what}",
            patience().as_secs()
        );
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Run to the end; standard output without the final newline. Panics with both outputs unless it exits with 0.
pub fn output_of(command: &mut Command) -> String {
    let output = command
        .output()
        .unwrap_or_else(|e| panic!("cannot start {:?}: {e}", command.get_program()));
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(
        output.status.success(),
        "{command:?}\nended with {}\nstdout: {text}\nstderr: {}",
        output.status,
        String::from_utf8_lossy(&output.stderr)
    );
    text.trim_end_matches('\n').to_string()
}

/// Is there such a program in PATH or in /usr/sbin?
pub fn has_program(name: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .chain([PathBuf::from("/usr/sbin")])
        .any(|dir| dir.join(name).is_file())
}

/// A process of ours, with its output in a log file. Ended on drop, together with the rest of its process group.
pub struct Running {
    child: Child,
    name: String,
    log: PathBuf,
    end_signal: i32,
    ended: Option<ExitStatus>,
}

impl Running {
    /// Start it. `end_signal` is what makes it end at once when the guard is dropped.
    pub fn start(mut command: Command, name: &str, log: &Path, end_signal: i32) -> Self {
        let file = File::options().create(true).append(true).open(log);
        let file = file.unwrap_or_else(|e| panic!("cannot write {}: {e}", log.display()));
        command
            .stdin(Stdio::null())
            .stderr(file.try_clone().expect("dup of a log file"))
            .stdout(file);
        command.process_group(0);
        // SAFETY: prctl is async-signal-safe and touches no memory of ours.
        unsafe {
            command.pre_exec(move || {
                libc::prctl(libc::PR_SET_PDEATHSIG, end_signal);
                Ok(())
            });
        }
        let child = spawn_from_lasting_thread(command)
            .unwrap_or_else(|e| panic!("cannot start {name}: {e}"));
        Running {
            child,
            name: name.into(),
            log: log.into(),
            end_signal,
            ended: None,
        }
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    pub fn log(&self) -> String {
        String::from_utf8_lossy(&std::fs::read(&self.log).unwrap_or_default()).into_owned()
    }

    pub fn log_tail(&self) -> String {
        let log = self.log();
        let lines: Vec<_> = log.lines().collect();
        let from = lines.len().saturating_sub(40);
        format!(
            "--- end of the log of {} ---\n{}\n---",
            self.name,
            lines[from..].join("\n")
        )
    }

    pub fn signal(&self, signal: i32) {
        if self.ended.is_none() {
            // SAFETY: the child has not been waited for, so the pid is still its own.
            unsafe { libc::kill(self.child.id() as i32, signal) };
        }
    }

    /// Has it ended?
    pub fn status(&mut self) -> Option<ExitStatus> {
        if self.ended.is_none() {
            self.ended = self.child.try_wait().expect("waiting for a child of ours");
        }
        self.ended
    }

    /// Wait for its end.
    pub fn wait(&mut self) -> ExitStatus {
        let name = self.name.clone();
        let tail = self.log_tail();
        eventually(&format!("{name} should end\n{tail}"), || self.status())
    }

    /// Ask until there is an answer, for as long as the process lives. Failures show the end of its log.
    pub fn eventually<T>(&mut self, what: &str, mut ask: impl FnMut() -> Option<T>) -> T {
        let started = Instant::now();
        loop {
            if let Some(answer) = ask() {
                return answer;
            }
            if let Some(status) = self.status() {
                // It may have answered just before it ended.
                if let Some(answer) = ask() {
                    return answer;
                }
                panic!(
                    "{} ended ({status}) before: {what}\n{}",
                    self.name,
                    self.log_tail()
                );
            }
            let waited = started.elapsed();
            assert!(
                waited < patience(),
                "waited {} s in vain: {what}\n{}",
                waited.as_secs(),
                self.log_tail()
            );
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// Wait for a line of the log that contains `needle`, and return it.
    pub fn wait_log(&mut self, needle: &str) -> String {
        let log = self.log.clone();
        self.eventually(&format!("a log line with {needle:?}"), || {
            let text =
                String::from_utf8_lossy(&std::fs::read(&log).unwrap_or_default()).into_owned();
            // Only whole lines: the last one may still be growing.
            let whole = &text[..text.rfind('\n')? + 1];
            whole
                .lines()
                .find(|line| line.contains(needle))
                .map(String::from)
        })
    }

    /// SIGKILL to this one process, as a crash would be.
    pub fn kill_9(&mut self) {
        self.signal(libc::SIGKILL);
        self.wait();
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if self.status().is_none() {
            self.signal(self.end_signal);
            let deadline = Instant::now() + Duration::from_secs(10);
            while self.status().is_none() && Instant::now() < deadline {
                std::thread::sleep(Duration::from_millis(2));
            }
            self.signal(libc::SIGKILL);
        }
        // What it left in its own process group (we made the group, nobody else is in it).
        // SAFETY: kill has no memory preconditions; the group's id is the pid of a child of ours.
        unsafe { libc::kill(-(self.child.id() as i32), libc::SIGKILL) };
        let _ = self.child.wait();
        if std::thread::panicking() {
            eprintln!("{}", self.log_tail());
        }
    }
}

/// The processes that a process has started and that live.
pub fn children_of(pid: u32) -> Vec<u32> {
    let mut children = Vec::new();
    for entry in std::fs::read_dir("/proc").into_iter().flatten().flatten() {
        let Some(child) = entry
            .file_name()
            .to_str()
            .and_then(|name| name.parse().ok())
        else {
            continue;
        };
        if parent_and_state(child).is_some_and(|(parent, _)| parent == pid) {
            children.push(child);
        }
    }
    children
}

/// Wait until these processes, whose input has just been closed, are gone; those that are not are ended, with the rest
/// of the process group if they lead one.
pub fn wait_gone(pids: &[u32]) {
    let lives = |pid: u32| parent_and_state(pid).is_some_and(|(_, state)| state != "Z");
    let deadline = Instant::now() + Duration::from_secs(5);
    for &pid in pids {
        while lives(pid) && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(2));
        }
        if lives(pid) {
            // SAFETY: neither has memory preconditions; the process is the one we have been watching since its parent
            // lived.
            unsafe {
                let leads = libc::getpgid(pid as i32) == pid as i32;
                libc::kill(
                    if leads { -(pid as i32) } else { pid as i32 },
                    libc::SIGKILL,
                );
            }
        }
    }
}

fn parent_and_state(pid: u32) -> Option<(u32, String)> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // Behind the program's name, which may contain anything.
    let mut fields = text[text.rfind(')')? + 1..].split_whitespace();
    let state = fields.next()?.to_string();
    Some((fields.next()?.parse().ok()?, state))
}

type Order = (Command, Sender<std::io::Result<Child>>);

/// The kernel sends the parent-death signal when the *thread* that forked ends, and each test has a thread of its own.
/// So all children are started by one thread that lives as long as the process.
fn spawn_from_lasting_thread(command: Command) -> std::io::Result<Child> {
    static SPAWNER: OnceLock<Mutex<Sender<Order>>> = OnceLock::new();
    let spawner = SPAWNER.get_or_init(|| {
        let (orders, inbox) = channel::<Order>();
        std::thread::Builder::new()
            .name("spawner".into())
            .spawn(move || {
                for (mut command, reply) in inbox {
                    let _ = reply.send(command.spawn());
                }
            })
            .expect("cannot start a thread");
        Mutex::new(orders)
    });
    let (reply, answer) = channel();
    let orders = spawner.lock().unwrap_or_else(|e| e.into_inner());
    orders
        .send((command, reply))
        .expect("the spawner thread lives as long as the process");
    drop(orders);
    answer
        .recv()
        .expect("the spawner thread answers every order")
}
