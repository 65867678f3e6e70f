//! A private sshd on the loopback interface, playing a host with an environment (and so a Nix store) of its own.

use std::io::Read;
use std::net::{TcpListener, TcpStream};
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use super::process::{has_program, output_of, Running};
use super::{RunAs, TestDir};

pub struct Sshd {
    running: Running,
    port: u16,
    dir: TestDir,
}

impl Sshd {
    /// `env` is what every session of this "host" finds in its environment; PATH may be among it.
    pub fn start(env: &[(String, String)]) -> Sshd {
        assert!(
            has_program("sshd"),
            "sshd is not installed: run `make deps`"
        );
        let dir = TestDir::new(RunAs::Me);
        for key in ["host_key", "user_key"] {
            let mut keygen = Command::new("ssh-keygen");
            output_of(
                keygen
                    .args(["-q", "-t", "ed25519", "-N", "", "-C", key, "-f"])
                    .arg(dir.join(key)),
            );
        }
        if super::user::is_root() {
            std::fs::create_dir_all("/run/sshd")
                .expect("make /run/sshd, which sshd wants when started by root");
        }
        let set_env: Vec<_> = env
            .iter()
            .map(|(name, value)| format!("\"{name}={value}\""))
            .collect();
        // A port nobody has; if somebody takes it before sshd does, try another.
        for attempt in 1.. {
            let port = free_port();
            let config = format!(
                "Port {port}\nListenAddress 127.0.0.1\nHostKey {dir}/host_key\nAuthorizedKeysFile {dir}/user_key.pub\n\
                 PidFile none\nStrictModes no\nUsePAM {pam}\nPasswordAuthentication no\nKbdInteractiveAuthentication no\n\
                 PermitRootLogin prohibit-password\nUseDNS no\nPrintMotd no\nMaxStartups 200\nMaxSessions 200\n\
                 LogLevel VERBOSE\n{set_env}\n",
                dir = dir.path().display(),
                pam = if account_is_locked() { "yes" } else { "no" },
                set_env = if set_env.is_empty() { String::new() } else { format!("SetEnv {}", set_env.join(" ")) },
            );
            let config_file = dir.file("sshd_config", &config, RunAs::Me);
            let mut command = RunAs::Me.command("/usr/sbin/sshd");
            command.args(["-D", "-e", "-f"]).arg(config_file);
            let mut running = Running::start(command, "sshd", &dir.join("sshd.log"), libc::SIGTERM);
            let started = running.eventually("sshd should greet or end", || {
                greets(port)
                    .then_some(true)
                    .or_else(|| port_was_taken(&dir).then_some(false))
            });
            if started {
                return Sshd { running, port, dir };
            }
            assert!(attempt < 20, "no free port in {attempt} tries");
            std::fs::remove_file(dir.join("sshd.log")).expect("remove a log of our own");
        }
        unreachable!("the loop returns or panics")
    }

    pub fn port(&self) -> u16 {
        self.port
    }

    pub fn running(&mut self) -> &mut Running {
        &mut self.running
    }

    /// What it has logged; a refused login says why here.
    pub fn log(&self) -> String {
        self.running.log()
    }

    pub fn host_key_file(&self) -> PathBuf {
        self.dir.join("host_key.pub")
    }

    /// The host's public key as column 8 of a machines file wants it.
    pub fn host_key_base64(&self) -> String {
        let text = std::fs::read(self.host_key_file()).expect("read a key of our own");
        base64(text.trim_ascii_end())
    }

    /// The private key that opens it.
    pub fn user_key(&self) -> PathBuf {
        self.dir.join("user_key")
    }

    fn host_key(&self) -> String {
        let text = std::fs::read_to_string(self.host_key_file()).expect("read a key of our own");
        text.split_whitespace()
            .take(2)
            .collect::<Vec<_>>()
            .join(" ")
    }
}

/// An ssh client configuration for one user, in which each sshd has a host name. (A machines file has no field for a port.)
pub struct SshConfig {
    dir: TestDir,
    user: RunAs,
    hosts: String,
    known: String,
}

impl SshConfig {
    pub fn new(user: RunAs) -> SshConfig {
        let config = SshConfig {
            dir: TestDir::new(user),
            user,
            hosts: String::new(),
            known: String::new(),
        };
        config.write();
        config
    }

    /// Let `alias` mean this sshd.
    pub fn add(&mut self, alias: &str, sshd: &Sshd) -> &mut Self {
        let key = std::fs::read_to_string(sshd.user_key()).expect("read a key of our own");
        let key = self.dir.file(&format!("key-{alias}"), &key, self.user);
        self.hosts += &format!(
            "Host {alias}\n  HostName 127.0.0.1\n  Port {}\n  User {}\n  IdentityFile {}\n  HostKeyAlias {alias}\n",
            sshd.port,
            RunAs::Me.name(),
            key.display()
        );
        self.known += &format!("{alias} {}\n", sshd.host_key());
        self.write();
        self
    }

    pub fn path(&self) -> PathBuf {
        self.dir.join("config")
    }

    /// For the environment variable NIX_SSHOPTS.
    pub fn nix_sshopts(&self) -> String {
        format!("-F {}", self.path().display())
    }

    /// `ssh ALIAS ...` with this configuration and the user's rights.
    pub fn ssh(&self, alias: &str) -> Command {
        let mut command = self.user.command("ssh");
        command.arg("-F").arg(self.path()).args(["-x", "-a", alias]);
        command
    }

    fn write(&self) {
        self.dir.file("known_hosts", &self.known, self.user);
        let common = format!(
            "Host *\n  BatchMode yes\n  IdentitiesOnly yes\n  IdentityAgent none\n  UserKnownHostsFile {}\n\
             \x20 GlobalKnownHostsFile /dev/null\n  StrictHostKeyChecking yes\n  UpdateHostKeys no\n",
            self.dir.join("known_hosts").display()
        );
        self.dir
            .file("config", &format!("{}{common}", self.hosts), self.user);
    }
}

pub fn free_port() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").expect("bind a loopback port");
    listener
        .local_addr()
        .expect("the address of a bound socket")
        .port()
}

fn greets(port: u16) -> bool {
    let Ok(mut stream) = TcpStream::connect(("127.0.0.1", port)) else {
        return false;
    };
    let _ = stream.set_read_timeout(Some(Duration::from_secs(5)));
    let mut greeting = [0; 4];
    stream.read_exact(&mut greeting).is_ok() && &greeting == b"SSH-"
}

fn port_was_taken(dir: &TestDir) -> bool {
    std::fs::read_to_string(dir.join("sshd.log"))
        .is_ok_and(|log| log.contains("Address already in use"))
}

/// Without PAM sshd turns away an account whose password is locked with "!"; only root can see whether it is.
fn account_is_locked() -> bool {
    let shadow = std::fs::read_to_string("/etc/shadow").unwrap_or_default();
    let name = RunAs::Me.name();
    shadow.lines().any(|line| {
        line.strip_prefix(&name)
            .is_some_and(|rest| rest.starts_with(":!"))
    })
}

fn base64(bytes: &[u8]) -> String {
    const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut text = String::new();
    for chunk in bytes.chunks(3) {
        let group = chunk
            .iter()
            .fold(0u32, |group, byte| group << 8 | u32::from(*byte))
            << (8 * (3 - chunk.len()));
        for i in 0..4 {
            let six_bits = (group >> (18 - 6 * i) & 63) as usize;
            text.push(if i <= chunk.len() {
                ALPHABET[six_bits] as char
            } else {
                '='
            });
        }
    }
    text
}
