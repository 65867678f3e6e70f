//! GC roots as Hydra keeps them: an empty regular file named like the store path.
//! Those of Hydra's evaluator are symbolic links of the same name.

use std::fs::{self, File, FileTimes, Metadata, OpenOptions};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use crate::model::UnixSecs;
use crate::nix::store_path::base_name;

/// A root that was registered again within this time need not be marked as young again.
const FRESH_SECS: UnixSecs = 3600;

/// The folder of GC roots.
#[derive(Clone, Debug)]
pub struct GcRoots {
    dir: PathBuf,
}

impl GcRoots {
    /// # Errors
    /// When the folder cannot be made.
    pub fn open(dir: &Path) -> io::Result<GcRoots> {
        fs::create_dir_all(dir)?;
        Ok(GcRoots {
            dir: dir.to_owned(),
        })
    }

    /// For those who add nothing: the folder is not made.
    pub fn reader(dir: &Path) -> GcRoots {
        GcRoots {
            dir: dir.to_owned(),
        }
    }

    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Registers a store path. If it is registered in whatever form nothing happens but that an old file becomes young
    /// again, so that whoever removes old roots, knowing nothing of this new use, leaves it alone.
    ///
    /// # Errors
    /// When the file cannot be made.
    pub fn add(&self, store_path: &str) -> io::Result<()> {
        let path = self.dir.join(base_name(store_path));
        let made = OpenOptions::new().write(true).create_new(true).open(&path);
        match made {
            Ok(_) => Ok(()),
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                renew(&path);
                Ok(())
            }
            Err(error) => Err(error),
        }
    }

    /// All roots: their names, and when each was last changed.
    ///
    /// # Errors
    /// When the folder cannot be read; one that does not exist is empty.
    pub fn list(&self) -> io::Result<Vec<Root>> {
        let entries = match fs::read_dir(&self.dir) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            entries => entries?,
        };
        let mut roots = Vec::new();
        for entry in entries {
            let entry = entry?;
            let Ok(name) = entry.file_name().into_string() else {
                continue; // no store path has such a name
            };
            match entry.metadata() {
                Ok(meta) => roots.push(Root::new(name, &meta)),
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => return Err(error),
            }
        }
        Ok(roots)
    }

    /// Removes a root if it is still as it was in the list.
    ///
    /// # Errors
    /// When it cannot be removed; one that is gone is none.
    pub fn remove_unchanged(&self, root: &Root) -> io::Result<bool> {
        let path = self.dir.join(&root.name);
        let remove = || -> io::Result<bool> {
            let same = Root::new(root.name.clone(), &fs::symlink_metadata(&path)?) == *root;
            if same {
                fs::remove_file(&path)?;
            }
            Ok(same)
        };
        match remove() {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
            result => result,
        }
    }
}

/// A root, as it was when the folder was read.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Root {
    pub name: String,
    /// A file or symbolic link; anything else is no root.
    pub is_root: bool,
    pub changed: UnixSecs,
}

impl Root {
    fn new(name: String, meta: &Metadata) -> Root {
        let kind = meta.file_type();
        Root {
            name,
            is_root: kind.is_file() || kind.is_symlink(),
            changed: meta.ctime(),
        }
    }
}

/// As well as it goes: another user's file keeps its age, and is a root all the same.
fn renew(path: &Path) {
    let age = |meta: &Metadata| crate::sys::clock::unix_now() - meta.ctime();
    let old =
        fs::symlink_metadata(path).is_ok_and(|meta| meta.is_file() && age(&meta) > FRESH_SECS);
    if old {
        let now = FileTimes::new().set_modified(SystemTime::now());
        let _ = File::open(path).and_then(|file| file.set_times(now));
    }
}
