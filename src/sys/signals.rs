//! Signals as messages: one thread reads them, nobody handles them in a handler. SIGUSR1 is answered right here, with a
//! table of all threads in the log, so that it is answered whoever stands still.

use std::io;

use crossbeam_channel::{unbounded, Receiver};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM, SIGUSR1};
use signal_hook::iterator::Signals;

use super::{heartbeat, thread};

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Signal {
    /// SIGTERM or SIGINT: leave.
    Stop,
    /// SIGHUP: read the configuration again.
    Reload,
}

/// Starts the signal thread.
///
/// # Errors
/// When the handlers or the thread cannot be set up.
pub fn listen() -> io::Result<Receiver<Signal>> {
    let mut signals = Signals::new([SIGTERM, SIGINT, SIGHUP, SIGUSR1])?;
    // A handful of signals in the life of a process: no bound needed.
    let (sender, receiver) = unbounded();
    thread::spawn("signals", move || {
        for signal in signals.forever() {
            let message = match signal {
                SIGHUP => Signal::Reload,
                SIGUSR1 => {
                    for line in heartbeat::table() {
                        log::info!("{line}");
                    }
                    continue;
                }
                _ => Signal::Stop,
            };
            if sender.send(message).is_err() {
                break;
            }
        }
    })?;
    Ok(receiver)
}
