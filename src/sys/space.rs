//! How much room is left in file systems.

use std::ffi::CString;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

/// Bytes that we may still use in the file system of a folder, which need not exist yet; `None` if the system does not say.
pub fn free_in(path: &Path) -> Option<u64> {
    let nearest = path.ancestors().find(|ancestor| ancestor.exists())?;
    let name = CString::new(nearest.as_os_str().as_bytes()).ok()?;
    // SAFETY: all zeroes is a value of this plain structure.
    let mut of: libc::statvfs = unsafe { std::mem::zeroed() };
    // SAFETY: `name` ends in NUL, and both live until the call returns.
    if unsafe { libc::statvfs(name.as_ptr(), &mut of) } != 0 {
        return None;
    }
    #[allow(clippy::unnecessary_cast)] // narrower on some systems
    (of.f_bavail as u64).checked_mul(of.f_frsize as u64)
}

/// Less than this is too little. What was too little has to become a tenth more, so that it does not go to and fro.
pub fn needed(min: u64, is_short: bool) -> u64 {
    match is_short {
        false => min,
        true => min.saturating_add(min / 10),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn room_is_that_of_the_nearest_folder_that_exists() {
        let here = free_in(Path::new("/")).expect("a root");
        assert!(here > 0);
        let below = free_in(Path::new("/surely/not/there")).expect("its root");
        assert!(below.abs_diff(here) < 1 << 30);
    }

    #[test]
    fn what_was_too_little_has_to_become_a_tenth_more() {
        assert_eq!((needed(100, false), needed(100, true)), (100, 110));
        assert_eq!(needed(u64::MAX, true), u64::MAX);
    }
}
