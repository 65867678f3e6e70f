//! Objects: named bytes in one place, a folder or a bucket. A binary cache is written on top of this.
//!
//! Knows keys (`nix-cache-info`, `nar/....nar.xz`, `log/....drv`), whole puts and streamed gets; does not know what an
//! object means. A key is relative, with `/` between its parts and no part empty, `.` or `..`.
//!
//! What every implementation promises:
//!
//! * A put is whole or not there: a reader never sees half an object, and a put that failed left nothing under its key.
//! * When a put has answered, the object survives a crash of this host (a folder) or is stored (a bucket).
//! * Everything has a deadline of the implementation's own, and passing trouble (a network, a server that is busy) has
//!   been tried again inside; an error that comes out is worth telling the operator.
//! * May be used by many threads at once.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant, SystemTime};

use crate::model::UnixSecs;
use crate::sys::child::plain_error;

/// Where the temporary files of a folder lie, inside it, so that they can be renamed into place.
const STAGING: &str = ".hydrad-tmp";
/// Temporary files of a process that was killed are removed at the next start once they are this old.
const STAGING_AGE_MAX: Duration = Duration::from_secs(24 * 3600);

/// Why an object could not be read or written: always our side's trouble, never the build's.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("cannot {doing} {what}: {why}")]
pub struct ObjectError {
    /// A verb: `write`, `read`, `look for`, `remove`.
    pub doing: &'static str,
    /// The object with its place, as the operator would look for it: a path or `s3://bucket/key`.
    pub what: String,
    /// The system's or the server's words, and what to try if that is known.
    pub why: String,
}

/// What is to be stored.
#[derive(Clone, Copy, Debug)]
pub enum Body<'a> {
    Bytes(&'a [u8]),
    /// A file from [`Objects::staging`], complete; the put may move it away. Whoever made it removes what is left.
    File(&'a Path),
}

/// What a put does with an object that is there already.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Existing {
    Replace,
    /// The same key means the same bytes: what is there stays and nothing is sent, where that can be found out cheaply.
    Keep,
}

/// How the bytes are to be described to HTTP clients. A folder has no place for it.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Headers<'a> {
    pub content_type: &'a str,
    /// Such as `br` or `zstd`; empty for none.
    pub content_encoding: &'a str,
}

/// What is known of an object without reading it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Stat {
    /// Bytes.
    pub size: u64,
    /// When it was written, by the clock of the place.
    pub modified: Option<UnixSecs>,
}

/// A folder or bucket.
pub trait Objects: Send + Sync {
    /// Opens an object for reading from its beginning; `None` if there is none.
    ///
    /// # Errors
    /// When that cannot be found out; later trouble comes from the reader.
    fn open(&self, key: &str) -> Result<Option<Box<dyn Read + Send>>, ObjectError>;

    /// Size and age of an object; `None` if there is none.
    ///
    /// # Errors
    /// When that cannot be found out.
    fn stat(&self, key: &str) -> Result<Option<Stat>, ObjectError>;

    /// Stores an object. Says whether anything was written.
    ///
    /// # Errors
    /// When it could not be stored; the old object, if any, is then unchanged.
    fn put(
        &self,
        key: &str,
        body: Body<'_>,
        headers: Headers<'_>,
        existing: Existing,
    ) -> Result<bool, ObjectError>;

    /// Removes an object; no error if there is none.
    ///
    /// # Errors
    /// When it could not be removed.
    fn delete(&self, key: &str) -> Result<(), ObjectError>;

    /// Makes an empty temporary file for [`Body::File`] and says where it is.
    ///
    /// # Errors
    /// When the disk does not let us.
    fn staging(&self) -> Result<(File, PathBuf), ObjectError>;

    /// The place, for messages: `file:///var/cache/nix`, `s3://bucket`.
    fn describe(&self) -> String;

    /// Counters since the start.
    fn requests(&self) -> &Requests;

    /// How many questions at once are faster than one after the other.
    fn parallel_max(&self) -> usize;

    /// The whole of a small object; `None` if there is none.
    ///
    /// # Errors
    /// Also when it is larger than `bytes_max`.
    fn get(&self, key: &str, bytes_max: u64) -> Result<Option<Vec<u8>>, ObjectError> {
        let Some(reader) = self.open(key)? else {
            return Ok(None);
        };
        let fail = |why: String| ObjectError {
            doing: "read",
            what: format!("{}/{key}", self.describe()),
            why,
        };
        let mut bytes = Vec::new();
        reader
            .take(bytes_max.saturating_add(1))
            .read_to_end(&mut bytes)
            .map_err(|error| fail(plain_error(&error)))?;
        if bytes.len() as u64 > bytes_max {
            return Err(fail(format!("it is larger than {bytes_max} bytes")));
        }
        Ok(Some(bytes))
    }
}

/// What was asked of the place; Hydra's `s3` section of `SystemStatus` shows it for a bucket.
#[derive(Default, Debug)]
pub struct Requests {
    pub puts: AtomicU64,
    pub put_bytes: AtomicU64,
    pub put_ms: AtomicU64,
    pub gets: AtomicU64,
    pub get_bytes: AtomicU64,
    pub get_ms: AtomicU64,
    /// Questions for presence and size.
    pub heads: AtomicU64,
}

/// The same at one moment.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct Counts {
    pub puts: u64,
    pub put_bytes: u64,
    pub put_ms: u64,
    pub gets: u64,
    pub get_bytes: u64,
    pub get_ms: u64,
    pub heads: u64,
}

impl Requests {
    pub fn counts(&self) -> Counts {
        let count = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        Counts {
            puts: count(&self.puts),
            put_bytes: count(&self.put_bytes),
            put_ms: count(&self.put_ms),
            gets: count(&self.gets),
            get_bytes: count(&self.get_bytes),
            get_ms: count(&self.get_ms),
            heads: count(&self.heads),
        }
    }

    /// Counts a finished put.
    pub fn put(&self, bytes: u64, began: Instant) {
        self.puts.fetch_add(1, Ordering::Relaxed);
        self.put_bytes.fetch_add(bytes, Ordering::Relaxed);
        self.put_ms.fetch_add(millis(began), Ordering::Relaxed);
    }

    /// Counts a finished get.
    pub fn get(&self, bytes: u64, began: Instant) {
        self.gets.fetch_add(1, Ordering::Relaxed);
        self.get_bytes.fetch_add(bytes, Ordering::Relaxed);
        self.get_ms.fetch_add(millis(began), Ordering::Relaxed);
    }

    /// Counts a question for presence or size.
    pub fn head(&self) {
        self.heads.fetch_add(1, Ordering::Relaxed);
    }
}

fn millis(began: Instant) -> u64 {
    u64::try_from(began.elapsed().as_millis()).unwrap_or(u64::MAX)
}

/// Whether a key is one: relative, without empty, `.` and `..` parts and without control characters.
pub fn is_key(key: &str) -> bool {
    !key.is_empty()
        && !key.chars().any(char::is_control)
        && key
            .split('/')
            .all(|part| !part.is_empty() && part != "." && part != "..")
}

/// A folder, as `file://` names it.
#[derive(Debug)]
pub struct Folder {
    dir: PathBuf,
    requests: Requests,
    /// Numbers the temporary files of this process.
    next: AtomicU64,
}

impl Folder {
    /// Makes the folder if it is not there, and removes temporary files that a killed process left.
    ///
    /// # Errors
    /// When the folder cannot be made or written to.
    pub fn create(dir: &Path) -> Result<Folder, ObjectError> {
        let folder = Folder::at(dir);
        let staging = dir.join(STAGING);
        fs::create_dir_all(&staging).map_err(|error| failed("make", &staging, &error))?;
        folder.clean(&staging);
        Ok(folder)
    }

    /// For reading and removing alone: makes nothing.
    pub fn at(dir: &Path) -> Folder {
        Folder {
            dir: dir.to_owned(),
            requests: Requests::default(),
            next: AtomicU64::new(0),
        }
    }

    fn clean(&self, staging: &Path) {
        let Ok(entries) = fs::read_dir(staging) else {
            return;
        };
        let now = SystemTime::now();
        for entry in entries.flatten() {
            let old = entry
                .metadata()
                .and_then(|metadata| metadata.modified())
                .ok()
                .and_then(|modified| now.duration_since(modified).ok())
                .is_some_and(|age| age > STAGING_AGE_MAX);
            if old {
                if let Err(error) = fs::remove_file(entry.path()) {
                    log::warn!("cannot remove {}: {error}", entry.path().display());
                }
            }
        }
    }

    fn path(&self, key: &str, doing: &'static str) -> Result<PathBuf, ObjectError> {
        if is_key(key) {
            return Ok(self.dir.join(key));
        }
        Err(ObjectError {
            doing,
            what: format!("'{key}' in {}", self.dir.display()),
            why: "this is no name of an object".to_owned(),
        })
    }

    /// Puts a complete temporary file in its place, so that it is there after a crash too.
    fn place(&self, temporary: &Path, path: &Path, existing: Existing) -> io::Result<bool> {
        let folder = path.parent().unwrap_or(&self.dir);
        fs::create_dir_all(folder)?;
        let placed = match existing {
            Existing::Replace => {
                fs::rename(temporary, path)?;
                true
            }
            Existing::Keep => match fs::hard_link(temporary, path) {
                Ok(()) => true,
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => false,
                // A file system without hard links.
                Err(_) => {
                    fs::rename(temporary, path)?;
                    true
                }
            },
        };
        File::open(folder)?.sync_all()?;
        Ok(placed)
    }
}

impl Objects for Folder {
    fn open(&self, key: &str) -> Result<Option<Box<dyn Read + Send>>, ObjectError> {
        let began = Instant::now();
        let path = self.path(key, "read")?;
        match File::open(&path) {
            Ok(file) => {
                let bytes = file.metadata().map_or(0, |metadata| metadata.len());
                self.requests.get(bytes, began);
                Ok(Some(Box::new(file)))
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(failed("read", &path, &error)),
        }
    }

    fn stat(&self, key: &str) -> Result<Option<Stat>, ObjectError> {
        self.requests.head();
        let path = self.path(key, "look for")?;
        match fs::metadata(&path) {
            Ok(metadata) => Ok(Some(Stat {
                size: metadata.len(),
                modified: Some(metadata.mtime()),
            })),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(failed("look for", &path, &error)),
        }
    }

    fn put(
        &self,
        key: &str,
        body: Body<'_>,
        _headers: Headers<'_>,
        existing: Existing,
    ) -> Result<bool, ObjectError> {
        let began = Instant::now();
        let path = self.path(key, "write")?;
        let fail = |error: io::Error| failed("write", &path, &error);
        if existing == Existing::Keep && path.exists() {
            return Ok(false);
        }
        let (placed, bytes) = match body {
            Body::Bytes(bytes) => {
                let (mut file, temporary) = self.staging()?;
                let placed = file
                    .write_all(bytes)
                    .and_then(|()| file.sync_all())
                    .and_then(|()| self.place(&temporary, &path, existing));
                let _ = fs::remove_file(&temporary);
                (placed.map_err(fail)?, bytes.len() as u64)
            }
            Body::File(temporary) => {
                let file = File::open(temporary).map_err(fail)?;
                file.sync_all().map_err(fail)?;
                let bytes = file.metadata().map_err(fail)?.len();
                (self.place(temporary, &path, existing).map_err(fail)?, bytes)
            }
        };
        if placed {
            self.requests.put(bytes, began);
        }
        Ok(placed)
    }

    fn delete(&self, key: &str) -> Result<(), ObjectError> {
        let path = self.path(key, "remove")?;
        match fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                Err(failed("remove", &path, &error))
            }
            _ => Ok(()),
        }
    }

    fn staging(&self) -> Result<(File, PathBuf), ObjectError> {
        let folder = self.dir.join(STAGING);
        loop {
            let n = self.next.fetch_add(1, Ordering::Relaxed);
            let path = folder.join(format!("{}-{n}", std::process::id()));
            match OpenOptions::new().write(true).create_new(true).open(&path) {
                Ok(file) => return Ok((file, path)),
                // Another process with our number, on another host or before a restart.
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
                // Somebody emptied the folder: it is made again.
                Err(error) if error.kind() == io::ErrorKind::NotFound && n % 2 == 0 => {
                    fs::create_dir_all(&folder).map_err(|error| failed("make", &folder, &error))?;
                }
                Err(error) => return Err(failed("write", &path, &error)),
            }
        }
    }

    fn describe(&self) -> String {
        format!("file://{}", self.dir.display())
    }

    fn requests(&self) -> &Requests {
        &self.requests
    }

    fn parallel_max(&self) -> usize {
        2
    }
}

fn failed(doing: &'static str, path: &Path, error: &io::Error) -> ObjectError {
    ObjectError {
        doing,
        what: path.display().to_string(),
        why: plain_error(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: Headers<'static> = Headers {
        content_type: "text/plain",
        content_encoding: "",
    };

    fn text(folder: &Folder, key: &str) -> Option<String> {
        folder
            .get(key, 1 << 20)
            .expect("readable")
            .map(|bytes| String::from_utf8(bytes).expect("text"))
    }

    #[test]
    fn objects_come_back_and_nothing_is_left_beside_them() {
        let dir = tempfile::tempdir().expect("a folder");
        let folder = Folder::create(&dir.path().join("new/cache")).expect("made");
        assert_eq!(folder.stat("nar/a.nar"), Ok(None));
        assert_eq!(text(&folder, "nar/a.nar"), None);
        let (mut file, path) = folder.staging().expect("a file");
        file.write_all(b"one").expect("written");
        assert_eq!(
            folder.put("nar/a.nar", Body::File(&path), TEXT, Existing::Keep),
            Ok(true)
        );
        let _ = fs::remove_file(path);
        assert_eq!(
            folder.put("nar/a.nar", Body::Bytes(b"two"), TEXT, Existing::Keep),
            Ok(false),
            "what is there stays"
        );
        assert_eq!(text(&folder, "nar/a.nar").as_deref(), Some("one"));
        assert_eq!(
            folder.put("nar/a.nar", Body::Bytes(b"two"), TEXT, Existing::Replace),
            Ok(true)
        );
        assert_eq!(text(&folder, "nar/a.nar").as_deref(), Some("two"));
        let stat = folder.stat("nar/a.nar").expect("found").expect("there");
        assert!(stat.size == 3 && stat.modified.is_some(), "{stat:?}");
        assert!(folder.get("nar/a.nar", 2).is_err(), "too large");
        folder.delete("nar/a.nar").expect("removed");
        folder
            .delete("nar/a.nar")
            .expect("also when it is not there");
        assert_eq!(folder.stat("nar/a.nar"), Ok(None));
        let left = fs::read_dir(dir.path().join("new/cache").join(STAGING)).expect("readable");
        assert_eq!(left.count(), 0, "no temporary files");
    }

    #[test]
    fn a_put_that_fails_says_where_and_leaves_nothing() {
        let dir = tempfile::tempdir().expect("a folder");
        let folder = Folder::create(dir.path()).expect("made");
        fs::write(dir.path().join("nar"), b"a file where a folder should be").expect("written");
        let error = folder
            .put("nar/a.nar", Body::Bytes(b"x"), TEXT, Existing::Replace)
            .expect_err("must fail")
            .to_string();
        assert!(
            error.starts_with("cannot write ") && error.contains("/nar/a.nar: "),
            "{error}"
        );
        let left = fs::read_dir(dir.path().join(STAGING)).expect("readable");
        assert_eq!(left.count(), 0, "no temporary files");
        for key in ["", "/etc/passwd", "a/../b", "a//b", "./a", "a\n"] {
            assert!(folder.stat(key).is_err(), "{key:?}");
        }
    }
}
