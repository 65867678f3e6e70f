//! Folders for trees on their way into the store. Each is locked while it is in use; what is not locked was left by a process that
//! was killed, and goes with the next fetcher.

use std::fs::{self, DirBuilder};
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use crate::sys::lockfile::LockFile;

/// Making a folder and sweeping take turns; neither takes long.
const TURN_MAX: Duration = Duration::from_secs(60);
/// Names tried.
const NAMES_MAX: u32 = 10_000;

/// A folder that is gone with this value.
#[derive(Debug)]
pub struct Scratch {
    dir: PathBuf,
    _held: LockFile,
}

impl Scratch {
    /// # Errors
    /// Of the system.
    pub fn new(scm_dir: &Path) -> io::Result<Scratch> {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let place = scm_dir.join("tmp");
        let _turn = turn(&place)?;
        for _ in 0..NAMES_MAX {
            let number = NEXT.fetch_add(1, Ordering::Relaxed);
            let dir = place.join(format!("{}-{number}", std::process::id()));
            match DirBuilder::new().mode(0o700).create(&dir) {
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => continue,
                made => made?,
            }
            let Some(held) = LockFile::try_take_folder(&dir)? else {
                return Err(io::Error::other("a folder just made is locked"));
            };
            return Ok(Scratch { dir, _held: held });
        }
        Err(io::Error::other("no name is free"))
    }

    pub fn join(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_dir_all(&self.dir) {
            log::warn!("cannot remove {}: {error}", self.dir.display());
        }
    }
}

/// Takes away what nobody uses.
///
/// # Errors
/// When the folder cannot be used.
pub fn sweep(scm_dir: &Path) -> io::Result<()> {
    let place = scm_dir.join("tmp");
    let _turn = turn(&place)?;
    for entry in fs::read_dir(&place)? {
        let dir = entry?.path();
        if !dir.is_dir() {
            continue;
        }
        match LockFile::try_take_folder(&dir) {
            Ok(Some(_held)) => {
                if let Err(error) = fs::remove_dir_all(&dir) {
                    log::warn!("cannot remove {}: {error}", dir.display());
                }
            }
            Ok(None) => {}
            Err(error) => log::warn!("cannot look at {}: {error}", dir.display()),
        }
    }
    Ok(())
}

fn turn(place: &Path) -> io::Result<LockFile> {
    let lock = LockFile::take_within(&place.join(".lock"), TURN_MAX, &|| false)?;
    lock.ok_or_else(|| {
        io::Error::other(format!(
            "somebody holds {}/.lock for more than {} s",
            place.display(),
            TURN_MAX.as_secs()
        ))
    })
}
