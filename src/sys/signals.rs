//! Signals as messages: one thread reads them, nobody handles them in a handler. SIGUSR1 is answered right here, with a
//! table of all threads in the log, so that it is answered whoever stands still.

use std::io;

use crossbeam_channel::{unbounded, Receiver, Sender};
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

/// For a process with several services: those of `reloaded` hear of a reload, those of `all` of everything, and so does who gets
/// the receiver, who ends the others.
///
/// # Errors
/// When the thread cannot be set up.
pub fn shared(
    signals: &Receiver<Signal>,
    reloaded: Vec<Sender<Signal>>,
    all: Vec<Sender<Signal>>,
) -> io::Result<Receiver<Signal>> {
    if reloaded.is_empty() && all.is_empty() {
        return Ok(signals.clone());
    }
    let (sender, receiver) = unbounded();
    let signals = signals.clone();
    thread::spawn("signals-shared", move || {
        for signal in signals {
            let reloaded = reloaded.iter().filter(|_| signal == Signal::Reload);
            for other in reloaded.chain(&all) {
                // One that has ended needs none.
                let _ = other.send(signal);
            }
            if sender.send(signal).is_err() {
                break;
            }
        }
    })?;
    Ok(receiver)
}

/// Ends the process as SIGTERM does where nobody handles it, so that who waits for it sees that.
pub fn end_by_sigterm() -> ! {
    // It fails for signals that are none, and returns for those that end nothing.
    let _ = signal_hook::low_level::emulate_default_handler(SIGTERM);
    std::process::abort()
}
