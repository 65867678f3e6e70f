//! Build logs on disk: `build-logs/XX/REST.drv` for the current or final attempt of a derivation, and
//! `REST.drv.attempt-N` for the earlier ones (possibly compressed by whoever compresses logs).

use std::collections::{HashMap, HashSet};
use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Mutex;

use super::compress::decompress;
use crate::base::lock::lock;
use crate::model::{RunId, UnixSecs};
use crate::nix::store_path::base_name;

/// Endings a log may have got after it was written.
const COMPRESSED: [&str; 2] = [".bz2", ".zst"];
/// How often a log that gets another name meanwhile is looked for.
const OPENINGS_MAX: usize = 5;
/// Runs whose moved log is remembered, so that a repeated transaction names the same file.
const KEPT_MAX: usize = 4_096;

#[derive(Debug)]
pub struct LogStore {
    dir: PathBuf,
    kept: Mutex<HashMap<RunId, PathBuf>>,
}

impl LogStore {
    /// `data_dir` is HYDRA_DATA.
    ///
    /// # Errors
    /// When the folder cannot be made.
    pub fn open(data_dir: &Path) -> io::Result<LogStore> {
        let dir = data_dir.join("build-logs");
        fs::create_dir_all(&dir)?;
        Ok(LogStore {
            dir,
            kept: Mutex::new(HashMap::new()),
        })
    }

    /// For commands that only read.
    pub fn reader(data_dir: &Path) -> LogStore {
        LogStore {
            dir: data_dir.join("build-logs"),
            kept: Mutex::new(HashMap::new()),
        }
    }

    /// The folder of all logs.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Where the log of the current attempt is, or would be.
    pub fn path(&self, drv: &str) -> PathBuf {
        let base = base_name(drv);
        let cut = base.char_indices().nth(2).map_or(base.len(), |(at, _)| at);
        self.dir.join(&base[..cut]).join(&base[cut..])
    }

    /// Opens an empty log for a new attempt; what is there from earlier ones is moved aside.
    ///
    /// # Errors
    /// When the disk does not let us.
    pub fn begin(&self, drv: &str) -> io::Result<File> {
        let path = self.path(drv);
        self.move_aside(&path)?;
        let open = || {
            OpenOptions::new()
                .write(true)
                .create(true)
                .truncate(true)
                .open(&path)
        };
        match open() {
            // The first log in its folder.
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                if let Some(folder) = path.parent() {
                    fs::create_dir_all(folder)?;
                }
                open()
            }
            opened => opened,
        }
    }

    /// Removes the log of an attempt that built nothing.
    pub fn discard(&self, drv: &str) {
        if let Err(error) = fs::remove_file(self.path(drv)) {
            if error.kind() != io::ErrorKind::NotFound {
                log::warn!("cannot remove the log of {drv}: {error}");
            }
        }
    }

    /// Moves the log of a run aside, since another attempt follows, and says where to. Asked again for the same
    /// run, gives the same answer.
    pub fn keep(&self, run: RunId, drv: &str) -> PathBuf {
        let mut kept = lock(&self.kept);
        if let Some(path) = kept.get(&run) {
            return path.clone();
        }
        let plain = self.path(drv);
        let path = match self.move_aside(&plain) {
            Ok(Some(path)) => path,
            Ok(None) => plain,
            Err(error) => {
                log::warn!("cannot keep the log of an earlier attempt of {drv}: {error}");
                plain
            }
        };
        if kept.len() >= KEPT_MAX {
            kept.clear();
        }
        kept.insert(run, path.clone());
        path
    }

    /// Opens the newest log of a derivation for reading, compressed by somebody or not; `None` if there is none.
    ///
    /// # Errors
    /// When it cannot be read.
    pub fn newest(&self, drv: &str) -> io::Result<Option<Box<dyn io::Read + Send>>> {
        let mut last = None;
        for _ in 0..OPENINGS_MAX {
            let Some((_, path)) = self.attempts(drv)?.pop() else {
                return Ok(None);
            };
            let compression = match path.extension().and_then(|end| end.to_str()) {
                Some("bz2") => "bzip2",
                Some("zst") => "zstd",
                _ => "none",
            };
            match File::open(&path) {
                Ok(file) => return decompress(compression, file),
                // Moved aside or compressed in this very moment.
                Err(error) if error.kind() == io::ErrorKind::NotFound => last = Some(error),
                Err(error) => return Err(error),
            }
        }
        last.map_or(Ok(None), Err)
    }

    /// The logs of a derivation: attempt number and path, the current one last with the highest number.
    ///
    /// # Errors
    /// When the folder cannot be read.
    pub fn attempts(&self, drv: &str) -> io::Result<Vec<(u32, PathBuf)>> {
        let path = self.path(drv);
        let mut attempts = kept_attempts(&path)?;
        let next = attempts.last().map_or(1, |(n, _)| n + 1);
        let current =
            std::iter::once(path.clone()).chain(COMPRESSED.iter().map(|end| with_end(&path, end)));
        if let Some(current) = current.into_iter().find(|path| path.exists()) {
            attempts.push((next, current));
        }
        Ok(attempts)
    }

    /// The logs of earlier attempts that were last written before a time, folder by folder; `done` hears of each folder. What
    /// is all there is of its derivation is not among them, and what has another name is none of ours.
    ///
    /// # Errors
    /// When a folder cannot be read.
    pub fn old_attempts(
        &self,
        before: UnixSecs,
        done: &mut dyn FnMut(),
    ) -> io::Result<Vec<OldLog>> {
        let mut old = Vec::new();
        let folders = match fs::read_dir(&self.dir) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(old),
            folders => folders?,
        };
        for folder in folders {
            let folder = folder?;
            if folder.file_type()?.is_dir() {
                old_attempts_in(&folder.path(), before, &mut old)?;
                done();
            }
        }
        Ok(old)
    }

    /// Gives what is at the plain path (compressed or not) the next attempt number; an empty plain log is
    /// simply overwritten later. Returns where it went.
    fn move_aside(&self, path: &Path) -> io::Result<Option<PathBuf>> {
        let mut moved = None;
        for end in std::iter::once("").chain(COMPRESSED) {
            let old = with_end(path, end);
            match fs::symlink_metadata(&old) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                Err(error) => return Err(error),
                Ok(metadata) if metadata.len() == 0 => continue,
                Ok(_) => {}
            }
            let next = kept_attempts(path)?.last().map_or(1, |(n, _)| n + 1);
            let new = with_end(path, &format!(".attempt-{next}{end}"));
            fs::rename(&old, &new)?;
            moved.get_or_insert(new);
        }
        Ok(moved)
    }
}

/// The log of an earlier attempt.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct OldLog {
    pub path: PathBuf,
    pub bytes: u64,
}

impl OldLog {
    /// Removes it, if it is still as old as that; whether it was.
    ///
    /// # Errors
    /// When the disk does not let us.
    pub fn remove(&self, before: UnixSecs) -> io::Result<bool> {
        let removed = match written_before(&self.path, before)? {
            Some(_) => fs::remove_file(&self.path),
            None => return Ok(false),
        };
        match removed {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
            removed => removed.map(|()| true),
        }
    }
}

/// The size of a file that was last written before a time; `None` if it is younger, no file, or gone.
fn written_before(path: &Path, before: UnixSecs) -> io::Result<Option<u64>> {
    let metadata = match fs::symlink_metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        metadata => metadata?,
    };
    Ok((metadata.is_file() && metadata.mtime() < before).then_some(metadata.len()))
}

fn old_attempts_in(folder: &Path, before: UnixSecs, old: &mut Vec<OldLog>) -> io::Result<()> {
    let mut attempts: HashMap<String, Vec<(u32, String)>> = HashMap::new();
    let mut others: HashSet<String> = HashSet::new();
    for entry in fs::read_dir(folder)? {
        let Ok(name) = entry?.file_name().into_string() else {
            continue;
        };
        match attempt_of(&name) {
            Some((log, number)) => attempts
                .entry(log.to_owned())
                .or_default()
                .push((number, name)),
            None => drop(others.insert(name)),
        }
    }
    for (log, mut attempts) in attempts {
        attempts.sort_unstable();
        let mut ends = std::iter::once("").chain(COMPRESSED);
        if !ends.any(|end| others.contains(&format!("{log}{end}"))) {
            // The last attempt left no other log: `hydrad log` shows this one.
            attempts.pop();
        }
        for (_, name) in attempts {
            let path = folder.join(name);
            if let Some(bytes) = written_before(&path, before)? {
                old.push(OldLog { path, bytes });
            }
        }
    }
    Ok(())
}

/// Of `REST.drv.attempt-N`, compressed or not: `REST.drv` and N.
fn attempt_of(name: &str) -> Option<(&str, u32)> {
    let (log, rest) = name.rsplit_once(".attempt-")?;
    let number = COMPRESSED
        .iter()
        .find_map(|end| rest.strip_suffix(end))
        .unwrap_or(rest);
    let is_number = !number.is_empty() && number.bytes().all(|b| b.is_ascii_digit());
    (log.ends_with(".drv") && is_number).then_some((log, number.parse().ok()?))
}

fn with_end(path: &Path, end: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(end);
    PathBuf::from(name)
}

/// The attempts moved aside, by number.
fn kept_attempts(path: &Path) -> io::Result<Vec<(u32, PathBuf)>> {
    let (Some(folder), Some(name)) = (
        path.parent(),
        path.file_name().and_then(|name| name.to_str()),
    ) else {
        return Ok(Vec::new());
    };
    let entries = match fs::read_dir(folder) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries?,
    };
    let mut attempts = Vec::new();
    for entry in entries {
        let entry = entry?;
        let file = entry.file_name();
        let number = file
            .to_str()
            .and_then(|file| file.strip_prefix(name)?.strip_prefix(".attempt-"))
            .and_then(|rest| rest.split('.').next()?.parse().ok());
        if let Some(number) = number {
            attempts.push((number, entry.path()));
        }
    }
    attempts.sort();
    Ok(attempts)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    const DRV: &str = "/nix/store/aabbccddaabbccddaabbccddaabbccdd-x.drv";

    #[test]
    fn every_attempt_is_kept_and_numbered() {
        let dir = tempfile::tempdir().expect("a folder");
        let logs = LogStore::open(dir.path()).expect("logs");
        assert!(logs
            .path(DRV)
            .ends_with("build-logs/aa/bbccddaabbccddaabbccddaabbccdd-x.drv"));
        logs.begin(DRV)
            .expect("a log")
            .write_all(b"one")
            .expect("written");
        let first = logs.keep(RunId(1), DRV);
        assert_eq!(
            logs.keep(RunId(1), DRV),
            first,
            "asked again, the same answer"
        );
        logs.begin(DRV)
            .expect("a log")
            .write_all(b"two")
            .expect("written");
        // A restart finds the log of an attempt that nobody ended.
        logs.begin(DRV)
            .expect("a log")
            .write_all(b"three")
            .expect("written");
        let texts: Vec<(u32, String)> = logs
            .attempts(DRV)
            .expect("attempts")
            .into_iter()
            .map(|(n, path)| (n, fs::read_to_string(path).expect("text")))
            .collect();
        assert_eq!(
            texts,
            [(1, "one".into()), (2, "two".into()), (3, "three".into())]
        );
    }

    #[test]
    fn old_attempts_are_found_but_never_the_only_log() {
        let dir = tempfile::tempdir().expect("a folder");
        let folder = dir.path().join("build-logs/aa");
        fs::create_dir_all(&folder).expect("a folder");
        let write = |name: &str| fs::write(folder.join(name), b"text").expect("written");
        for name in [
            "one.drv.attempt-1",
            "one.drv.attempt-2.bz2",
            "one.drv.attempt-10",
            "one.drv",
            // What was built last left no log.
            "two.drv.attempt-1",
            "two.drv.attempt-2.zst",
            // A compressed one is one.
            "three.drv.attempt-1",
            "three.drv.bz2",
            // None of ours.
            "four.drv.attempt-x",
            "four.drv.attempt-1.orig",
            "four.attempt-1",
        ] {
            write(name);
        }
        let logs = LogStore::reader(dir.path());
        let found = |before| {
            let mut folders = 0;
            let old = logs
                .old_attempts(before, &mut || folders += 1)
                .expect("readable");
            assert_eq!(folders, 1);
            let mut names: Vec<String> = old
                .iter()
                .map(|log| base_name(&log.path.to_string_lossy()).to_owned())
                .collect();
            names.sort();
            (old, names)
        };
        let later = i64::MAX;
        assert_eq!(
            found(later).1,
            [
                "one.drv.attempt-1",
                "one.drv.attempt-10",
                "one.drv.attempt-2.bz2",
                "three.drv.attempt-1",
                "two.drv.attempt-1"
            ]
        );
        assert_eq!(found(0).1, [""; 0]);
        for log in found(later).0 {
            assert!(!log.remove(0).expect("looked at"), "it is younger now");
            assert!(log.remove(later).expect("removed"));
            assert!(!log.remove(later).expect("gone already"));
        }
        assert_eq!(found(later).1, [""; 0]);
        assert!(folder.join("two.drv.attempt-2.zst").exists());
    }

    #[test]
    fn a_compressed_log_of_an_older_attempt_never_stands_beside_a_new_one() {
        let dir = tempfile::tempdir().expect("a folder");
        let logs = LogStore::open(dir.path()).expect("logs");
        logs.begin(DRV).expect("a log");
        fs::write(with_end(&logs.path(DRV), ".bz2"), b"old").expect("written");
        logs.begin(DRV).expect("a log");
        assert!(!with_end(&logs.path(DRV), ".bz2").exists());
        assert!(with_end(&logs.path(DRV), ".attempt-1.bz2").exists());
    }
}
