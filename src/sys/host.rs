//! This host's name.

use std::ffi::{CStr, CString};

/// The name as the kernel has it.
pub fn host_name() -> String {
    let text = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    match text.trim() {
        "" => "localhost".to_owned(),
        name => name.to_owned(),
    }
}

/// The name with its domain, as far as this host or its DNS knows that.
pub fn full_host_name() -> String {
    let name = host_name();
    match name.contains('.') {
        true => name,
        false => canonical(&name).unwrap_or(name),
    }
}

fn canonical(name: &str) -> Option<String> {
    let text = CString::new(name).ok()?;
    // SAFETY: all-zero is a valid addrinfo.
    let mut hints: libc::addrinfo = unsafe { std::mem::zeroed() };
    hints.ai_flags = libc::AI_CANONNAME;
    hints.ai_socktype = libc::SOCK_STREAM;
    let mut found: *mut libc::addrinfo = std::ptr::null_mut();
    // SAFETY: the text ends with NUL, hints and found live through the call.
    let code = unsafe { libc::getaddrinfo(text.as_ptr(), std::ptr::null(), &hints, &mut found) };
    if code != 0 || found.is_null() {
        return None;
    }
    // SAFETY: getaddrinfo succeeded, so the first entry is there; its name is NUL-terminated or null.
    let canonical = unsafe {
        let name = (*found).ai_canonname;
        (!name.is_null()).then(|| CStr::from_ptr(name).to_string_lossy().into_owned())
    };
    // SAFETY: what getaddrinfo gave, given back once.
    unsafe { libc::freeaddrinfo(found) };
    canonical.filter(|canonical| canonical.contains('.'))
}
