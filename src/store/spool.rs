//! A folder of names of what is still to be done, one empty file each, so that it is not forgotten with the process.
//!
//! Knows names alone; whoever uses it knows what is to be done.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

#[derive(Debug)]
pub struct Spool {
    dir: PathBuf,
}

impl Spool {
    /// # Errors
    /// When the folder cannot be made.
    pub fn open(dir: &Path) -> io::Result<Spool> {
        fs::create_dir_all(dir)?;
        Ok(Spool {
            dir: dir.to_owned(),
        })
    }

    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Notes a name; again, if it is there.
    ///
    /// # Errors
    /// When the disk does not let us.
    pub fn add(&self, name: &str) -> io::Result<()> {
        fs::write(self.dir.join(name), b"")
    }

    /// When a name was noted last; `None` if it is not there.
    pub fn noted(&self, name: &str) -> Option<SystemTime> {
        fs::metadata(self.dir.join(name)).ok()?.modified().ok()
    }

    /// Done, unless it was noted again after `noted`.
    ///
    /// # Errors
    /// When the disk does not let us.
    pub fn remove(&self, name: &str, noted: Option<SystemTime>) -> io::Result<()> {
        if self.noted(name) != noted {
            return Ok(());
        }
        match fs::remove_file(self.dir.join(name)) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            result => result,
        }
    }

    /// The names noted that `wanted` says yes to, at most `names_max`.
    ///
    /// # Errors
    /// When the folder cannot be read.
    pub fn names(
        &self,
        names_max: usize,
        wanted: impl Fn(&str) -> bool,
    ) -> io::Result<Vec<String>> {
        let mut names = Vec::new();
        for entry in fs::read_dir(&self.dir)? {
            let entry = entry?;
            let Ok(name) = entry.file_name().into_string() else {
                continue;
            };
            if names.len() >= names_max {
                break;
            }
            if wanted(&name) {
                names.push(name);
            }
        }
        Ok(names)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_stay_until_they_are_done() {
        let dir = tempfile::tempdir().expect("a folder");
        let spool = Spool::open(&dir.path().join("spool")).expect("a spool");
        for name in ["b", "a", "b"] {
            spool.add(name).expect("noted");
        }
        spool.remove("none", None).expect("nothing to remove");
        let names = |spool: &Spool| {
            let mut names = spool.names(10, |name| name != "c").expect("names");
            names.sort();
            names
        };
        assert_eq!(names(&spool), ["a", "b"]);
        assert_eq!(spool.names(1, |_| true).expect("names").len(), 1);
        let first = Some(SystemTime::UNIX_EPOCH);
        spool.remove("a", first).expect("noted again since");
        assert_eq!(names(&spool), ["a", "b"]);
        spool.remove("a", spool.noted("a")).expect("removed");
        assert_eq!(names(&Spool::open(spool.dir()).expect("again")), ["b"]);
    }
}
