//! A private directory under /tmp with a short name (a socket's path has 107 bytes), removed on drop.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use super::RunAs;

pub struct TestDir {
    path: PathBuf,
}

impl TestDir {
    /// A new directory, owned by `owner`, that everybody may enter.
    pub fn new(owner: RunAs) -> Self {
        let path = tempfile::Builder::new()
            .prefix("hd-")
            .tempdir_in("/tmp")
            .expect("cannot make a directory in /tmp")
            .keep();
        let dir = TestDir { path };
        fs::set_permissions(&dir.path, fs::Permissions::from_mode(0o755))
            .expect("chmod of a directory just made");
        owner.give(&dir.path);
        dir
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    pub fn join(&self, name: impl AsRef<Path>) -> PathBuf {
        self.path.join(name)
    }

    /// A subdirectory for `owner`.
    pub fn sub(&self, name: &str, owner: RunAs) -> PathBuf {
        let path = self.path.join(name);
        fs::create_dir_all(&path).unwrap_or_else(|e| panic!("cannot make {}: {e}", path.display()));
        owner.give(&path);
        path
    }

    /// A file for `owner`, not readable by others (ssh insists on it for keys).
    pub fn file(&self, name: &str, contents: &str, owner: RunAs) -> PathBuf {
        let path = self.path.join(name);
        fs::write(&path, contents)
            .unwrap_or_else(|e| panic!("cannot write {}: {e}", path.display()));
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600))
            .expect("chmod of a file just written");
        owner.give(&path);
        path
    }
}

impl Drop for TestDir {
    fn drop(&mut self) {
        remove_or_keep(&self.path);
    }
}

/// Remove a tree, store directories without write permission included; or say where it was kept.
pub(super) fn remove_or_keep(path: &Path) {
    if std::env::var_os("HYDRAD_TEST_KEEP").is_some_and(|v| v == "1") {
        eprintln!("kept: {}", path.display());
        return;
    }
    if fs::remove_dir_all(path).is_err() {
        make_writable(path);
        let _ = fs::remove_dir_all(path);
    }
}

fn make_writable(dir: &Path) {
    let _ = fs::set_permissions(dir, fs::Permissions::from_mode(0o700));
    for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            make_writable(&entry.path());
        }
    }
}
