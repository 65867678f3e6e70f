//! Telling systemd how we are (`sd_notify`) and taking the sockets it opened, without its library.

use std::collections::HashMap;
use std::net::TcpListener;
use std::os::fd::{FromRawFd, OwnedFd, RawFd};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::time::Duration;

/// How long a message may wait to be taken.
const PATIENCE: Duration = Duration::from_millis(500);

/// Sends a state such as `READY=1` to the socket in `NOTIFY_SOCKET`. Does nothing without one;
/// systemd being away is no reason to stop.
pub fn notify(state: &str) {
    let Some(name) = std::env::var_os("NOTIFY_SOCKET") else {
        return;
    };
    let bytes = std::os::unix::ffi::OsStrExt::as_bytes(name.as_os_str());
    let address = match bytes.strip_prefix(b"@") {
        Some(name) => SocketAddr::from_abstract_name(name),
        None => SocketAddr::from_pathname(&name),
    };
    let sent = address.and_then(|address| {
        let socket = UnixDatagram::unbound()?;
        // A systemd that does not read must not hold up whoever tells it.
        socket.set_write_timeout(Some(PATIENCE))?;
        socket.send_to_addr(state.as_bytes(), &address)
    });
    if let Err(error) = sent {
        log::debug!("cannot tell systemd '{state}': {error}");
    }
}

/// Listening sockets that systemd has opened for us (socket activation), by name.
#[derive(Default, Debug)]
pub struct Sockets(Vec<(String, OwnedFd)>);

/// The first descriptor of those that systemd passes.
const FIRST_SOCKET: RawFd = 3;
/// More are no business of ours.
const SOCKETS_MAX: RawFd = 64;

impl Sockets {
    /// Takes what was passed to this process. To be called once, before anything is opened or started.
    pub fn take() -> Sockets {
        let variable = |name: &str| {
            let value = std::env::var(name).ok();
            // Meant for us and nobody we start.
            std::env::remove_var(name);
            value
        };
        let [pid, count, names] = ["LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES"].map(variable);
        let is_for_us = pid.and_then(|pid| pid.parse().ok()) == Some(std::process::id());
        let count: RawFd = count.and_then(|count| count.parse().ok()).unwrap_or(0);
        if !is_for_us || count <= 0 {
            return Sockets::default();
        }
        let names = names.unwrap_or_default();
        let mut names = names.split(':');
        let fds = FIRST_SOCKET..FIRST_SOCKET + count.min(SOCKETS_MAX);
        let take = |fd: RawFd| {
            // SAFETY: fcntl with this command has no memory arguments.
            if unsafe { libc::fcntl(fd, libc::F_SETFD, libc::FD_CLOEXEC) } < 0 {
                return None;
            }
            // SAFETY: the descriptor is open, and systemd has given it to us alone.
            let fd = unsafe { OwnedFd::from_raw_fd(fd) };
            Some((names.next().unwrap_or("").to_owned(), fd))
        };
        Sockets(fds.filter_map(take).collect())
    }

    /// The sockets of these names, also if they are called `hydrad-NAME.socket`, as systemd does by default. What cannot be
    /// used is said in the log and closed.
    pub fn named(self, known: &[&'static str]) -> HashMap<&'static str, TcpListener> {
        let mut found = HashMap::new();
        for (name, fd) in self.0 {
            let bare = name.strip_suffix(".socket").unwrap_or(&name);
            let bare = bare.strip_prefix("hydrad-").unwrap_or(bare);
            let socket = TcpListener::from(fd);
            match known.iter().find(|known| **known == bare) {
                None => log::warn!(
                    "systemd passed a socket named '{name}': known are {}; not used",
                    known.join(", ")
                ),
                Some(_) if socket.local_addr().is_err() => log::warn!(
                    "the socket '{name}' that systemd passed is not for TCP (ListenStream=HOST:PORT); not used"
                ),
                Some(known) => {
                    found.insert(*known, socket);
                }
            }
        }
        found
    }
}

/// How often the watchdog wants to hear from us: half of `WATCHDOG_USEC`.
pub fn watchdog_interval() -> Option<Duration> {
    let usec: u64 = std::env::var("WATCHDOG_USEC").ok()?.parse().ok()?;
    if let Ok(pid) = std::env::var("WATCHDOG_PID") {
        if pid.parse() != Ok(std::process::id()) {
            return None;
        }
    }
    (usec > 0).then(|| Duration::from_micros(usec / 2))
}
