//! Users of the operating system: names and numbers, from the system's own tables.
//!
//! Does not know which user is used for what.

use std::ffi::{CStr, CString};
use std::mem::MaybeUninit;

/// A user of this host.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct OsUser {
    pub name: String,
    pub uid: u32,
    pub gid: u32,
    pub home: String,
}

/// The user this process runs as; `None` if the uid has no name.
pub fn current() -> Option<OsUser> {
    by_uid(effective_uid())
}

pub fn effective_uid() -> u32 {
    // SAFETY: geteuid has no preconditions and cannot fail.
    unsafe { libc::geteuid() }
}

pub fn by_uid(uid: u32) -> Option<OsUser> {
    lookup(|entry, buffer, found| {
        // SAFETY: all pointers come from live buffers of the given length.
        unsafe { libc::getpwuid_r(uid, entry, buffer.as_mut_ptr(), buffer.len(), found) }
    })
}

pub fn by_name(name: &str) -> Option<OsUser> {
    let name = CString::new(name).ok()?;
    lookup(|entry, buffer, found| {
        // SAFETY: as in `by_uid`; `name` ends in NUL and outlives the call.
        unsafe {
            libc::getpwnam_r(
                name.as_ptr(),
                entry,
                buffer.as_mut_ptr(),
                buffer.len(),
                found,
            )
        }
    })
}

fn lookup(
    call: impl Fn(*mut libc::passwd, &mut [libc::c_char], *mut *mut libc::passwd) -> libc::c_int,
) -> Option<OsUser> {
    const BUFFER_BYTES_MAX: usize = 1 << 20;
    let mut buffer: Vec<libc::c_char> = vec![0; 4096];
    loop {
        let mut entry = MaybeUninit::<libc::passwd>::uninit();
        let mut found: *mut libc::passwd = std::ptr::null_mut();
        let code = call(entry.as_mut_ptr(), &mut buffer, &mut found);
        if code == libc::ERANGE && buffer.len() < BUFFER_BYTES_MAX {
            let longer = buffer.len() * 4;
            buffer.resize(longer, 0);
            continue;
        }
        if code != 0 || found.is_null() {
            return None;
        }
        // SAFETY: the call succeeded and `found` points to `entry`, which it filled in; its
        // strings lie in `buffer`, which is still alive.
        return unsafe {
            let entry = entry.assume_init();
            let text = |p: *const libc::c_char| CStr::from_ptr(p).to_string_lossy().into_owned();
            Some(OsUser {
                name: text(entry.pw_name),
                uid: entry.pw_uid,
                gid: entry.pw_gid,
                home: text(entry.pw_dir),
            })
        };
    }
}
