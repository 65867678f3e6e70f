//! One conversation with a machine's `nix-store --serve`: how it is started, greeted, kept and ended.
//!
//! Knows which program is started for which machine and puts that program's name and words into errors.

use std::io::Read;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::config::machines::MachineLine;
use crate::sys::child::{self, describe_status, plain_error, PipedChild};
use crate::sys::kill::KillSwitch;
use crate::sys::pipes::{self, interruption, Interruption, PipeReader, PipeWriter, Pipes};
use crate::wire::serve::ServeClient;
use crate::wire::Error as WireError;

/// How a program that gave up has to hurry with its last words.
const LAST_WORDS: Duration = Duration::from_secs(2);
/// Bytes of temporary roots after which a connection is not used again: the machine's garbage collector
/// can free nothing of them while it lives.
const TEMP_ROOT_BYTES_MAX: u64 = 8 << 20;
/// Of what a machine answers to a short command.
const ANSWER_BYTES_MAX: u64 = 64 << 10;

/// Why something with a machine did not work.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Trouble {
    /// The run was ended by the plan.
    Killed,
    /// The machine, the way to it, or the program at its end.
    Machine(String),
    /// This host: its disk, its store, its database.
    Ours(String),
}

/// The deadlines of a conversation.
#[derive(Clone, Copy, Debug)]
pub struct Deadlines {
    /// Until the greeting, with the way there.
    pub connect: Duration,
    /// Until the greeting on this host.
    pub local_greeting: Duration,
    pub query: Duration,
    pub substitute: Duration,
    pub send: Duration,
    pub receive: Duration,
    /// Until the busy row of a step is committed, before its build request is sent.
    pub row: Duration,
    pub shutdown: Duration,
}

/// An open, greeted conversation.
pub struct Connection {
    pub client: ServeClient<PipeReader, PipeWriter>,
    pub pipes: Arc<Pipes>,
    machine: String,
    program: String,
    child: PipedChild,
    shutdown: Duration,
    opened: Instant,
    /// When its last step ended; `None`: it has carried none.
    used: Option<Instant>,
    temp_root_bytes: u64,
}

/// The programs that lead to machines, and options for ssh.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Programs {
    pub nix_store: String,
    pub ssh: String,
    pub ssh_options: Vec<String>,
    /// ssh's own limit for the connection.
    pub connect_secs: u64,
}

impl Default for Programs {
    fn default() -> Programs {
        Programs {
            nix_store: "nix-store".into(),
            ssh: "ssh".into(),
            ssh_options: Vec::new(),
            connect_secs: 60,
        }
    }
}

/// The program that leads to a machine.
fn program<'a>(line: &MachineLine, programs: &'a Programs) -> &'a str {
    if line.is_localhost {
        &programs.nix_store
    } else {
        &programs.ssh
    }
}

/// The command that leads to a machine's `nix-store --serve --write`. `known_hosts` is a file with the
/// host key of the machines file, if that has one.
pub fn command(line: &MachineLine, programs: &Programs, known_hosts: Option<&Path>) -> Command {
    if line.is_localhost {
        let mut command = Command::new(&programs.nix_store);
        // Not to be handed on to other machines by Nix itself.
        command.args(["--builders", "", "--serve", "--write"]);
        return command;
    }
    let mut command = way(line, programs, known_hosts);
    command
        .arg(nix_store(line, programs))
        .args(["--serve", "--write"]);
    if let Some(store) = &line.remote_store {
        command.arg("--store").arg(shell_quoted(store));
    }
    command
}

/// Which `nix-store` serves the machine.
fn nix_store<'a>(line: &'a MachineLine, programs: &'a Programs) -> &'a str {
    match &line.remote_program {
        Some(program) if !line.is_localhost => program,
        _ if line.is_localhost => &programs.nix_store,
        _ => "nix-store",
    }
}

/// ssh to a machine, up to the words that are run there.
fn way(line: &MachineLine, programs: &Programs, known_hosts: Option<&Path>) -> Command {
    let mut command = Command::new(&programs.ssh);
    command.arg(line.ssh_target());
    // The user's own options come first: for ssh the first value of an option wins.
    if let Ok(options) = std::env::var("NIX_SSHOPTS") {
        command.args(options.split_whitespace());
    }
    command.args(&programs.ssh_options);
    if let Some(key) = &line.ssh_key {
        command.arg("-i").arg(key);
    }
    if let Some(file) = known_hosts {
        command.arg(format!("-oUserKnownHostsFile={}", file.display()));
    }
    if let Some(port) = line.port {
        command.arg(format!("-p{port}"));
    }
    command.args([
        "-x",
        "-a",
        "-oBatchMode=yes",
        "-oTCPKeepAlive=yes",
        "-oServerAliveInterval=15",
        "-oServerAliveCountMax=4",
    ]);
    command.arg(format!("-oConnectTimeout={}", programs.connect_secs.max(1)));
    if line.compress {
        command.arg("-C");
    }
    command.arg("--");
    command
}

/// What is asked of a machine beside its store.
#[derive(Clone, Copy, Debug)]
pub enum Asked<'a> {
    /// `nix-store --version`.
    NixVersion,
    /// How much room a folder has: POSIX `df`.
    FreeSpace(&'a str),
    /// `nix-store --delete`, of paths that are nobody's any more.
    Delete(&'a [String]),
}

/// Runs a short command on the machine, the way its store is reached, and returns what it prints.
///
/// # Errors
/// [`Trouble::Machine`] with the program's name or words, if it cannot be started, takes longer than `patience`, or
/// ends with another exit code than 0.
pub fn ask(
    line: &MachineLine,
    programs: &Programs,
    known_hosts: Option<&Path>,
    patience: Duration,
    kill: Arc<KillSwitch>,
    asked: Asked<'_>,
) -> Result<String, Trouble> {
    let words: Vec<String> = match asked {
        Asked::NixVersion => vec![nix_store(line, programs).into(), "--version".into()],
        Asked::FreeSpace(folder) => ["df", "-P", "-k", "--", folder].map(String::from).into(),
        Asked::Delete(paths) => {
            let mut words = vec![nix_store(line, programs).into(), "--delete".into()];
            if let Some(store) = line.remote_store.as_ref().filter(|_| !line.is_localhost) {
                words.extend(["--store".into(), store.clone()]);
            }
            words.extend(paths.iter().cloned());
            words
        }
    };
    let mut command = if line.is_localhost {
        let mut command = Command::new(&words[0]);
        command.args(&words[1..]);
        command
    } else {
        let mut command = way(line, programs, known_hosts);
        // The program may bring arguments, as in the connection itself.
        command.arg(&words[0]);
        let is_plain = |word: &str| {
            word.chars()
                .all(|c| c.is_ascii_alphanumeric() || "-_./".contains(c))
        };
        command.args(words[1..].iter().map(|word| match is_plain(word) {
            true => word.clone(),
            false => shell_quoted(word),
        }));
        command
    };
    let started = match line.is_localhost {
        true => words[0].as_str(),
        false => &programs.ssh,
    };
    let fails =
        |why: String| Trouble::Machine(format!("'{}', asked for `{}`: {why}", line.name, words[0]));
    let (mut child, ends) = child::spawn(&mut command)
        .map_err(|error| fails(format!("cannot start {started}: {}", plain_error(&error))))?;
    let (reader, mut writer, pipes) = pipes::open(ends.stdin, ends.stdout, Some(ends.stderr), kill)
        .map_err(|error| Trouble::Ours(format!("cannot set up pipes: {error}")))?;
    writer.close();
    pipes.enter("asking it", patience);
    let mut said = Vec::new();
    let read = reader.take(ANSWER_BYTES_MAX).read_to_end(&mut said);
    if let Err(error) = &read {
        return Err(match interruption(error) {
            Some(Interruption::Killed) => Trouble::Killed,
            _ => fails(error.to_string()),
        });
    }
    pipes.drain_to_end(LAST_WORDS);
    let words = pipes.stderr_tail();
    match child.end(LAST_WORDS) {
        Some(status) if status.success() => {
            Ok(crate::base::text::plain(&String::from_utf8_lossy(&said)))
        }
        status => Err(fails(match (words.is_empty(), status) {
            (false, _) => last_lines(&words, 5),
            (true, Some(status)) => describe_status(status),
            (true, None) => "it does not end".into(),
        })),
    }
}

/// Bytes free for us in what `df -P -k` printed.
pub fn free_bytes(said: &str) -> Option<u64> {
    // The last line's fourth column; the file system's name in the first may contain blanks, the percentage in the fifth
    // tells the columns.
    let line = said.lines().rev().find(|line| !line.trim().is_empty())?;
    let words: Vec<&str> = line.split_whitespace().collect();
    let percent = words.iter().rposition(|word| {
        word.strip_suffix('%')
            .is_some_and(|number| number.parse::<u32>().is_ok())
    })?;
    let kib: u64 = words.get(percent.checked_sub(1)?)?.parse().ok()?;
    kib.checked_mul(1024)
}

/// ssh joins its arguments and gives them to the remote shell.
fn shell_quoted(text: &str) -> String {
    format!("'{}'", text.replace('\'', "'\\''"))
}

impl Connection {
    /// Starts the program and greets what answers.
    ///
    /// # Errors
    /// [`Trouble::Machine`] with the program's name or its own words; [`Trouble::Killed`].
    pub fn open(
        line: &MachineLine,
        programs: &Programs,
        known_hosts: Option<&Path>,
        deadlines: &Deadlines,
        kill: Arc<KillSwitch>,
    ) -> Result<Connection, Trouble> {
        let program = program(line, programs);
        let cannot =
            |why: String| Trouble::Machine(format!("cannot connect to '{}': {why}", line.name));
        let (mut child, ends) = child::spawn(&mut command(line, programs, known_hosts))
            .map_err(|error| cannot(format!("cannot start {program}: {}", plain_error(&error))))?;
        let (reader, writer, pipes) = pipes::open(ends.stdin, ends.stdout, Some(ends.stderr), kill)
            .map_err(|error| Trouble::Ours(format!("cannot set up pipes: {error}")))?;
        let patience = if line.is_localhost {
            deadlines.local_greeting
        } else {
            deadlines.connect
        };
        pipes.enter("waiting for its greeting", patience);
        match ServeClient::handshake(reader, writer) {
            Ok(client) => Ok(Connection {
                client,
                pipes,
                machine: line.name.to_string(),
                program: program.to_owned(),
                child,
                shutdown: deadlines.shutdown,
                opened: Instant::now(),
                used: None,
                temp_root_bytes: 0,
            }),
            Err(error) => {
                let interrupted = interrupted(&error);
                if interrupted == Some(Interruption::Killed) {
                    return Err(Trouble::Killed);
                }
                if interrupted.is_none() {
                    pipes.drain_to_end(LAST_WORDS);
                }
                let words = pipes.stderr_tail();
                // The conversation's ends are gone with the client: the program can leave.
                let status = child.end(LAST_WORDS);
                Err(cannot(match (interrupted, words.is_empty()) {
                    (Some(deadline), true) => format!("{deadline}; {program} said nothing"),
                    (Some(deadline), false) => format!("{deadline}; {program} said: {words}"),
                    (None, _) if !matches!(error, WireError::Io(_)) => {
                        let said = if words.is_empty() {
                            String::new()
                        } else {
                            format!("; {program} said: {words}")
                        };
                        format!("{error}{said}")
                    }
                    (None, false) => words,
                    (None, true) => format!(
                        "{program} ended without a word ({})",
                        status.map_or_else(|| "it still runs".to_owned(), describe_status)
                    ),
                }))
            }
        }
    }

    /// Whether the conversation can carry another step: quiet, young, few temporary roots. One that has carried none yet
    /// keeps nothing from the machine's garbage collector, so it may wait for longer.
    pub fn is_reusable(&self, idle_max: Duration, age_max: Duration) -> bool {
        self.used.is_none_or(|used| used.elapsed() < idle_max)
            && self.opened.elapsed() < age_max
            && self.temp_root_bytes < TEMP_ROOT_BYTES_MAX
            && !self.client.get_ref().is_ready()
    }

    /// Notes that it was used just now.
    pub fn touch(&mut self) {
        self.used = Some(Instant::now());
    }

    /// Counts what a locking query of these paths leaves behind on the machine.
    pub fn count_temp_roots<'a>(&mut self, paths: impl Iterator<Item = &'a str>) {
        self.temp_root_bytes += paths.map(|path| path.len() as u64 + 1).sum::<u64>();
    }

    /// What an error in the middle of a conversation means. `doing` completes "lost 'H' while ...".
    pub fn trouble(&mut self, error: &WireError, doing: &str) -> Trouble {
        match interrupted(error) {
            Some(Interruption::Killed) => Trouble::Killed,
            Some(deadline) => Trouble::Machine(format!("'{}': {deadline}", self.machine)),
            None => {
                if error.is_eof() {
                    self.pipes.drain_to_end(LAST_WORDS);
                }
                let words = last_lines(&self.pipes.stderr_tail(), 5);
                let what = if error.is_eof() {
                    "the connection ended".to_owned()
                } else {
                    error.to_string()
                };
                let said = if words.is_empty() {
                    String::new()
                } else {
                    format!("; {} said: {words}", self.program)
                };
                Trouble::Machine(format!("'{}', while {doing}: {what}{said}", self.machine))
            }
        }
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        // First the end of stdin, which ends a build within milliseconds; the child is waited for after.
        self.client.get_mut().1.close();
        self.child.end(self.shutdown);
    }
}

/// The interruption behind a wire error, if it is one.
pub fn interrupted(error: &WireError) -> Option<Interruption> {
    match error {
        WireError::Io(error) | WireError::Source(error) => interruption(error).cloned(),
        _ => None,
    }
}

fn last_lines(text: &str, count: usize) -> String {
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(count)..].join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn free_space_of_what_df_prints() {
        let linux = "Filesystem     1024-blocks     Used Available Capacity Mounted on\n/dev/sda1        102400000 50000000  52400000      49% /\n";
        assert_eq!(free_bytes(linux), Some(52_400_000 * 1024));
        let mac = "Filesystem   1024-blocks      Used Available Capacity  Mounted on\n/dev/disk3s7   965595304  12345678 900000000     2%    /nix\n";
        assert_eq!(free_bytes(mac), Some(900_000_000 * 1024));
        let blanks = "Filesystem 1024-blocks Used Available Capacity Mounted on\nmap of me 10 5 5 50% /mnt/a b 7% c\n";
        assert_eq!(
            free_bytes(blanks),
            None,
            "two percentages, and no number before the last"
        );
        for odd in [
            "",
            "\n",
            "bash: df: command not found",
            "1%",
            "x 1% y",
            "a 99999999999999999999 1% /",
        ] {
            assert_eq!(free_bytes(odd), None, "{odd:?}");
        }
    }
}
