//! Lock files held with `flock` for the life of the process.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::time::{Duration, Instant};

/// How often a lock is tried that somebody else holds: the kernel offers no wait with a deadline.
const TRY_EVERY: Duration = Duration::from_millis(50);

/// An exclusive lock on a file; given up when dropped or when the process ends.
#[derive(Debug)]
pub struct LockFile {
    _file: File,
}

impl LockFile {
    /// Takes the lock, creating the file (mode 0600) and its folder. `Ok(None)`: somebody else holds it.
    ///
    /// # Errors
    /// When the file cannot be made or locked for another reason.
    pub fn try_take(path: &Path) -> io::Result<Option<LockFile>> {
        Ok(LockFile::open(path)?.ok())
    }

    /// The lock, or the file that somebody else has locked.
    fn open(path: &Path) -> io::Result<Result<LockFile, File>> {
        if let Some(folder) = path.parent() {
            fs::create_dir_all(folder)?;
        }
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(path)?;
        LockFile::lock(file)
    }

    fn lock(file: File) -> io::Result<Result<LockFile, File>> {
        // SAFETY: flock takes a descriptor that `file` keeps open.
        if unsafe { libc::flock(file.as_raw_fd(), libc::LOCK_EX | libc::LOCK_NB) } == 0 {
            return Ok(Ok(LockFile { _file: file }));
        }
        let error = io::Error::last_os_error();
        match error.raw_os_error() {
            Some(libc::EWOULDBLOCK) => Ok(Err(file)),
            _ => Err(error),
        }
    }

    /// The lock of a folder, which must exist.
    ///
    /// # Errors
    /// As [`LockFile::try_take`].
    pub fn try_take_folder(path: &Path) -> io::Result<Option<LockFile>> {
        Ok(LockFile::lock(File::open(path)?)?.ok())
    }

    /// Waits for the lock as long as this, or until `stopping`. `Ok(None)`: somebody else still holds it.
    ///
    /// # Errors
    /// As [`LockFile::try_take`].
    pub fn take_within(
        path: &Path,
        time_max: Duration,
        stopping: &dyn Fn() -> bool,
    ) -> io::Result<Option<LockFile>> {
        let until = Instant::now() + time_max;
        let mut tried = LockFile::open(path)?;
        loop {
            let file = match tried {
                Ok(lock) => return Ok(Some(lock)),
                Err(_) if Instant::now() >= until || stopping() => return Ok(None),
                Err(file) => file,
            };
            std::thread::sleep(TRY_EVERY);
            tried = LockFile::lock(file)?;
        }
    }
}
