//! Processes: whether one is there, and what this one uses.

use std::time::Duration;

/// Whether a process is there and has not ended (one that ended and was not waited for has).
pub fn is_alive(pid: u32) -> bool {
    match std::fs::read_to_string(format!("/proc/{pid}/stat")) {
        // The name in parentheses may contain anything; the state follows the last one.
        Ok(stat) => !matches!(
            stat.rsplit(')')
                .next()
                .and_then(|rest| rest.trim().chars().next()),
            Some('Z' | 'X') | None
        ),
        Err(_) => false,
    }
}

/// What this process uses; `None` where the system does not say.
#[derive(Clone, Copy, Default, Debug)]
pub struct Usage {
    pub resident_bytes: Option<u64>,
    pub virtual_bytes: Option<u64>,
    pub open_fds: Option<u64>,
    pub max_fds: Option<u64>,
    pub threads: Option<u64>,
    /// User and system time, without children.
    pub cpu: Option<Duration>,
}

/// Looks at this process.
pub fn usage() -> Usage {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let field = |name: &str| -> Option<u64> {
        let line = status.lines().find_map(|line| line.strip_prefix(name))?;
        line.split_whitespace().next()?.parse().ok()
    };
    let kilobytes = |name: &str| field(name).map(|kilobytes| kilobytes * 1024);
    let fds = std::fs::read_dir("/proc/self/fd").ok();
    let mut limit = libc::rlimit {
        rlim_cur: 0,
        rlim_max: 0,
    };
    // SAFETY: the call fills the structure given to it.
    let has_limit = unsafe { libc::getrlimit(libc::RLIMIT_NOFILE, &mut limit) } == 0;
    // SAFETY: all zeros is a value of this structure of numbers, and the call fills it.
    let (used, has_used) = unsafe {
        let mut used: libc::rusage = std::mem::zeroed();
        let got = libc::getrusage(libc::RUSAGE_SELF, &mut used);
        (used, got == 0)
    };
    let time = |time: libc::timeval| {
        let micros = time.tv_sec * 1_000_000 + time.tv_usec;
        Duration::from_micros(u64::try_from(micros).unwrap_or(0))
    };
    Usage {
        resident_bytes: kilobytes("VmRSS:"),
        virtual_bytes: kilobytes("VmSize:"),
        open_fds: fds.map(|fds| fds.count() as u64),
        max_fds: has_limit.then_some(limit.rlim_cur),
        threads: field("Threads:"),
        cpu: has_used.then(|| time(used.ru_utime) + time(used.ru_stime)),
    }
}

/// How much of this host's memory waits to be written to disk; `None` where the system does not say.
pub fn dirty_bytes() -> Option<u64> {
    memory_info("Dirty:")
}

/// The memory of this host, bytes.
pub fn memory_bytes() -> Option<u64> {
    memory_info("MemTotal:")
}

/// A line of /proc/meminfo.
fn memory_info(name: &str) -> Option<u64> {
    let text = std::fs::read_to_string("/proc/meminfo").ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix(name))?;
    let kilobytes: u64 = line.split_whitespace().next()?.parse().ok()?;
    kilobytes.checked_mul(1024)
}

/// The memory that a process has, bytes; `None` once it has ended.
pub fn resident_bytes(pid: u32) -> Option<u64> {
    let pages = std::fs::read_to_string(format!("/proc/{pid}/statm")).ok()?;
    let pages: u64 = pages.split_whitespace().nth(1)?.parse().ok()?;
    // SAFETY: sysconf has no memory arguments.
    let page = unsafe { libc::sysconf(libc::_SC_PAGESIZE) };
    Some(pages * u64::try_from(page).unwrap_or(4_096))
}

/// Bounds the memory that a child may ask for, address space in use for data alone, bytes. Its own children inherit that.
///
/// # Errors
/// What the system says.
pub fn limit_data(pid: u32, bytes_max: u64) -> std::io::Result<()> {
    let limit = libc::rlimit {
        rlim_cur: bytes_max,
        rlim_max: bytes_max,
    };
    let pid = libc::pid_t::try_from(pid).unwrap_or(libc::pid_t::MAX);
    // SAFETY: the call reads the structure given to it and writes nothing.
    match unsafe { libc::prlimit(pid, libc::RLIMIT_DATA, &limit, std::ptr::null_mut()) } {
        0 => Ok(()),
        _ => Err(std::io::Error::last_os_error()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_process_uses_something_of_everything() {
        let usage = usage();
        let (open, max) = (
            usage.open_fds.expect("fds"),
            usage.max_fds.expect("a limit"),
        );
        assert!(open > 2 && open <= max, "{usage:?}");
        assert!(usage.resident_bytes < usage.virtual_bytes, "{usage:?}");
        assert!(usage.threads >= Some(1) && usage.cpu.is_some(), "{usage:?}");
        assert!(resident_bytes(std::process::id()) > Some(100_000));
        assert_eq!(resident_bytes(u32::MAX), None);
    }

    #[test]
    fn an_ended_child_is_not_alive_before_it_is_waited_for() {
        assert!(is_alive(std::process::id()));
        let mut child = std::process::Command::new("true").spawn().expect("true");
        while is_alive(child.id()) {
            std::thread::yield_now();
        }
        assert!(child.wait().expect("waited").success());
    }
}
