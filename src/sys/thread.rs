//! Named OS threads.

use std::io;
use std::thread::{Builder, JoinHandle};

/// Stack of every thread of ours, bytes. A thousand slots take address space, not memory.
const STACK_BYTES: usize = 1 << 20;

/// Starts a named thread. The name shows in `top -H`, in panics and in the log (the kernel keeps
/// its first 15 bytes).
pub fn spawn<T: Send + 'static>(
    name: impl Into<String>,
    body: impl FnOnce() -> T + Send + 'static,
) -> io::Result<JoinHandle<T>> {
    Builder::new()
        .name(name.into())
        .stack_size(STACK_BYTES)
        .spawn(body)
}
