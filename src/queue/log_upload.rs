//! Logs of finished attempts, put into the binary cache as well (`upload_logs_to_binary_cache`).
//!
//! The one who needs a log uploaded notes it in a spool before anybody hears that the attempt has ended; the note is
//! removed when the log is in the cache. So whoever compresses or moves the file in between, and whenever this process
//! ends, the log is found and uploaded: it is looked for under all the names it may have by then. The local file stays.
//! What does not work is tried again, and never a build's failure. Logs of one derivation are uploaded by the same
//! thread, so that the last one stays.

use std::io;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use crossbeam_channel::{bounded, select, Receiver, Sender, TryRecvError};

use super::Context;
use crate::nix::store_path::base_name;
use crate::store::spool::Spool;
use crate::sys::child::plain_error;
use crate::sys::heartbeat::{self, Patience};

/// Threads that upload, and their names.
pub const UPLOADERS: [&str; 2] = ["log-upload-1", "log-upload-2"];
/// Logs that one thread has waiting in memory; the others it finds in the spool.
const WAITING_MAX: usize = 1_024;
/// Notes looked at in one pass over the spool.
const NOTES_MAX: usize = 4_096;
/// Pauses between passes over the spool while something in it does not work.
const PAUSE_MIN: Duration = Duration::from_secs(5);
const PAUSE_MAX: Duration = Duration::from_secs(600);
/// A log that could not be uploaded for this long is given up, with a line in the log of hydrad.
const NOTE_AGE_MAX: Duration = Duration::from_secs(7 * 24 * 3600);
/// The cache has deadlines of its own; this is for an upload that shows no progress at all.
const UPLOAD_PATIENCE: Duration = Duration::from_secs(3600);

/// The way to the uploaders, and what they share.
pub struct LogUploads {
    spool: Spool,
    ways: Vec<(Sender<String>, Receiver<String>)>,
    /// Logs handed over or under way, not those that wait for another try.
    open: AtomicU64,
}

impl LogUploads {
    /// # Errors
    /// When the spool's folder cannot be made.
    pub fn open(dir: &Path) -> io::Result<LogUploads> {
        Ok(LogUploads {
            spool: Spool::open(dir)?,
            ways: UPLOADERS.iter().map(|_| bounded(WAITING_MAX)).collect(),
            open: AtomicU64::new(0),
        })
    }

    pub fn dir(&self) -> &Path {
        self.spool.dir()
    }

    /// Has the newest log of a derivation uploaded.
    pub fn add(&self, drv: &str) {
        let name = base_name(drv);
        if let Err(error) = self.spool.add(name) {
            log::warn!(
                "cannot note in {} that the log of {drv} is to be uploaded: {}",
                self.dir().display(),
                plain_error(&error)
            );
        }
        self.open.fetch_add(1, Ordering::SeqCst);
        // Whoever finds no room is found in the spool.
        if self.ways[shard(name)].0.try_send(name.to_owned()).is_err() {
            self.open.fetch_sub(1, Ordering::SeqCst);
        }
    }

    /// Logs that are not in the cache yet, as far as they are counted.
    pub fn left(&self) -> usize {
        self.spool
            .names(NOTES_MAX, |_| true)
            .map_or(0, |notes| notes.len())
    }

    /// Waits until what was handed over is in the cache or has failed, or `until` has passed, or `is_enough` says so.
    pub fn wait(&self, until: Instant, is_enough: impl Fn() -> bool) {
        while self.open.load(Ordering::SeqCst) > 0 && Instant::now() < until && !is_enough() {
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

/// Which of the threads uploads it.
fn shard(name: &str) -> usize {
    name.bytes().map(usize::from).sum::<usize>() % UPLOADERS.len()
}

/// The body of uploader number `me`, until `ended` is closed.
pub fn serve(context: &Context, uploads: &LogUploads, me: usize, ended: &Receiver<()>) {
    let mut pause = PAUSE_MIN;
    // What the last process left.
    let mut look_again = Instant::now();
    loop {
        heartbeat::idle("waiting for logs to upload");
        let name = select! {
            recv(uploads.ways[me].1) -> name => name.ok(),
            recv(ended) -> _ => return,
            default(look_again.saturating_duration_since(Instant::now())) => None,
        };
        if let Some(name) = name {
            let done = upload(context, uploads, &name);
            uploads.open.fetch_sub(1, Ordering::SeqCst);
            if !done {
                look_again = look_again.min(Instant::now() + PAUSE_MIN);
            }
            continue;
        }
        pause = match again(context, uploads, me, ended) {
            true => PAUSE_MIN,
            false => (pause * 2).min(PAUSE_MAX),
        };
        look_again = Instant::now() + pause;
    }
}

/// One pass over the spool; false if something did not work. The first that does not ends it: the others would not either.
fn again(context: &Context, uploads: &LogUploads, me: usize, ended: &Receiver<()>) -> bool {
    let notes = match uploads.spool.names(NOTES_MAX, |name| shard(name) == me) {
        Ok(notes) => notes,
        Err(error) => {
            log::warn!(
                "cannot read {}: {}",
                uploads.dir().display(),
                plain_error(&error)
            );
            return false;
        }
    };
    let is_ended = || ended.try_recv() == Err(TryRecvError::Disconnected);
    notes
        .iter()
        .all(|name| !is_ended() && upload(context, uploads, name))
}

/// Uploads the newest log of a derivation. False: it is to be tried again.
fn upload(context: &Context, uploads: &LogUploads, name: &str) -> bool {
    let Some(cache) = context.dest.cache() else {
        return true;
    };
    let noted = uploads.spool.noted(name);
    let result = heartbeat::during(
        "uploading a log",
        Patience::Deadline(UPLOAD_PATIENCE),
        || match context.logs.newest(name) {
            Ok(Some(mut log)) => cache.put_log(name, &mut *log).map(|()| true),
            Ok(None) => Ok(false),
            Err(error) => Err(plain_error(&error)),
        },
    );
    match result {
        Ok(true) => {}
        Ok(false) => log::warn!("the log of {name} is gone before it could be uploaded"),
        Err(message) => {
            let age = noted
                .and_then(|noted| noted.elapsed().ok())
                .unwrap_or_default();
            if age < NOTE_AGE_MAX {
                log::warn!(
                    "cannot upload the log of {name} to {}; it is kept and tried again: {message}",
                    cache.describe()
                );
                return false;
            }
            log::error!(
                "the log of {name} is not uploaded to {} any more, after {} days: {message}",
                cache.describe(),
                age.as_secs() / 86_400
            );
        }
    }
    if let Err(error) = uploads.spool.remove(name, noted) {
        log::warn!(
            "cannot remove the note about the log of {name} in {}: {}",
            uploads.dir().display(),
            plain_error(&error)
        );
    }
    true
}
