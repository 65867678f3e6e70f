//! GC roots as Hydra keeps them: an empty regular file named like the store path.
//! Roots are removed by `hydra-update-gc-roots`, never here.

use std::fs::{self, OpenOptions};
use std::io;
use std::path::{Path, PathBuf};

use crate::nix::store_path::base_name;

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

    /// Registers a store path; nothing happens if it is registered in whatever form.
    ///
    /// # Errors
    /// When the file cannot be made.
    pub fn add(&self, store_path: &str) -> io::Result<()> {
        let name = base_name(store_path);
        match OpenOptions::new()
            .write(true)
            .create_new(true)
            .open(self.dir.join(name))
        {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => Err(error),
            _ => Ok(()),
        }
    }
}
