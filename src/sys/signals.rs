//! Signals as messages: one thread reads them, nobody handles them in a handler.

use std::io;

use crossbeam_channel::{unbounded, Receiver};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::iterator::Signals;

use super::thread;

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
    let mut signals = Signals::new([SIGTERM, SIGINT, SIGHUP])?;
    // A handful of signals in the life of a process: no bound needed.
    let (sender, receiver) = unbounded();
    thread::spawn("signals", move || {
        for signal in signals.forever() {
            let message = if signal == SIGHUP {
                Signal::Reload
            } else {
                Signal::Stop
            };
            if sender.send(message).is_err() {
                break;
            }
        }
    })?;
    Ok(receiver)
}
