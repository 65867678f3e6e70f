//! A switch that interrupts a thread which waits for a pipe.

use std::fs::File;
use std::io::{self, Write};
use std::os::fd::{AsRawFd, FromRawFd, RawFd};
use std::sync::atomic::{AtomicBool, Ordering};

/// Thrown by any thread, seen by the one that polls [`KillSwitch::fd`].
#[derive(Debug)]
pub struct KillSwitch {
    event: File,
    thrown: AtomicBool,
}

impl KillSwitch {
    /// # Errors
    /// When the process is out of file descriptors.
    pub fn new() -> io::Result<KillSwitch> {
        // SAFETY: eventfd has no memory arguments; the result is checked before it is owned.
        let fd = unsafe { libc::eventfd(0, libc::EFD_CLOEXEC | libc::EFD_NONBLOCK) };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: `fd` is a fresh descriptor that nobody else owns.
        let event = unsafe { File::from_raw_fd(fd) };
        Ok(KillSwitch {
            event,
            thrown: AtomicBool::new(false),
        })
    }

    pub fn throw(&self) {
        self.thrown.store(true, Ordering::SeqCst);
        // The counter can only overflow after 2^64 throws; any other failure leaves `thrown` set.
        let _ = (&self.event).write_all(&1u64.to_ne_bytes());
    }

    pub fn is_thrown(&self) -> bool {
        self.thrown.load(Ordering::SeqCst)
    }

    /// Readable once the switch is thrown.
    pub fn fd(&self) -> RawFd {
        self.event.as_raw_fd()
    }
}
