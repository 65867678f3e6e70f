//! What this process may do with a file or folder; the kernel is asked, nothing is tried.

use std::ffi::CString;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

/// Whether it may be written.
pub fn may_write(path: &Path) -> bool {
    may(path, libc::W_OK)
}

/// Whether files may be made in it.
pub fn may_fill(folder: &Path) -> bool {
    may(folder, libc::W_OK | libc::X_OK)
}

pub fn may_execute(file: &Path) -> bool {
    may(file, libc::X_OK)
}

fn may(path: &Path, mode: libc::c_int) -> bool {
    CString::new(path.as_os_str().as_bytes()).is_ok_and(|path| {
        // SAFETY: the string is terminated and lives through the call.
        unsafe { libc::access(path.as_ptr(), mode) == 0 }
    })
}
