//! Named OS threads.

use std::io;
use std::thread::{Builder, JoinHandle};

use super::heartbeat;

/// Stack of every thread of ours, bytes. A thousand slots take address space, not memory.
const STACK_BYTES: usize = 1 << 20;

/// Starts a named thread. The name shows in `top -H`, in panics and in the log (the kernel keeps
/// its first 15 bytes). What it does is seen by [`heartbeat::all`].
pub fn spawn<T: Send + 'static>(
    name: impl Into<String>,
    body: impl FnOnce() -> T + Send + 'static,
) -> io::Result<JoinHandle<T>> {
    let name = name.into();
    Builder::new()
        .name(name.clone())
        .stack_size(STACK_BYTES)
        .spawn(move || {
            heartbeat::register(&name);
            body()
        })
}
