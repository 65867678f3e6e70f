//! Control groups below our own, where systemd has delegated that to us (`Delegate=yes`): each with a limit of its own for
//! memory, so that one that takes too much is what the kernel ends, and we learn of it.
//!
//! The unified hierarchy (cgroup v2) alone. Where it is not to be had there are no groups, and nobody misses them but for what
//! they would tell.

use std::ffi::CString;
use std::fs;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use super::access;

/// Where the hierarchy is.
pub const ROOT: &str = "/sys/fs/cgroup";
/// Our own processes move there: a group that has groups with controllers below it may have none.
const SERVICE: &str = "service";

/// The right to make groups.
#[derive(Clone, Debug)]
pub struct Delegated {
    base: PathBuf,
}

impl Delegated {
    /// Takes what was delegated to this process, if anything was. To be called before anything is started that has to stay
    /// where it is.
    ///
    /// # Errors
    /// A message about what is delegated and cannot be used.
    pub fn take(root: &Path) -> Result<Option<Delegated>, String> {
        let own = fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
        Delegated::below(root, &own, &|pid| is_ours(pid))
    }

    fn below(
        root: &Path,
        own: &str,
        is_ours: &dyn Fn(u32) -> bool,
    ) -> Result<Option<Delegated>, String> {
        let Some(own) = own.lines().find_map(|line| line.strip_prefix("0::/")) else {
            return Ok(None);
        };
        let base = root.join(own);
        let controllers = fs::read_to_string(base.join("cgroup.controllers")).unwrap_or_default();
        let has_memory = controllers.split_whitespace().any(|name| name == "memory");
        let control = base.join("cgroup.subtree_control");
        if own.is_empty() || !has_memory || !access::may_write(&control) {
            return Ok(None);
        }
        // A terminal's group, say, holds others too: it is not ours to divide.
        let pids = pids(&base);
        if pids.is_empty() || !pids.iter().all(|pid| is_ours(*pid)) {
            return Ok(None);
        }
        let divide = || {
            let service = base.join(SERVICE);
            if !service.is_dir() {
                fs::create_dir(&service)?;
            }
            for pid in pids {
                fs::write(service.join("cgroup.procs"), pid.to_string())?;
            }
            fs::write(&control, "+memory")
        };
        match divide() {
            Ok(()) => Ok(Some(Delegated { base })),
            Err(error) => Err(format!(
                "the control group {} cannot be divided: {error}",
                base.display()
            )),
        }
    }

    /// Makes a group. Whatever is left of an earlier one of this name is ended.
    ///
    /// # Errors
    /// Of the system.
    pub fn group(&self, name: &str, memory_bytes_max: Option<u64>) -> io::Result<Group> {
        let dir = self.base.join(name);
        match fs::create_dir(&dir) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                let _ = fs::write(dir.join("cgroup.kill"), "1");
            }
            result => result?,
        }
        let group = Group { dir };
        if let Some(bytes) = memory_bytes_max {
            fs::write(group.dir.join("memory.max"), bytes.to_string())?;
            // Not where the kernel does not know it.
            let _ = fs::write(group.dir.join("memory.swap.max"), "0");
        }
        Ok(group)
    }
}

/// The smallest limit for memory of the groups that this process is in, bytes; `None` if there is none.
pub fn memory_bytes_max() -> Option<u64> {
    let own = fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
    smallest_limit(Path::new(ROOT), &own)
}

fn smallest_limit(root: &Path, own: &str) -> Option<u64> {
    let own = own.lines().find_map(|line| line.strip_prefix("0::/"))?;
    let limit = |dir: &Path| -> Option<u64> {
        let text = fs::read_to_string(dir.join("memory.max")).ok()?;
        text.trim().parse().ok()
    };
    let groups = Path::new(own).ancestors();
    groups.filter_map(|group| limit(&root.join(group))).min()
}

/// A group of its own for a child; gone when this is.
#[derive(Debug)]
pub struct Group {
    dir: PathBuf,
}

impl Group {
    /// The file into which a process writes `0` to be in the group.
    pub fn entrance(&self) -> CString {
        let path = self.dir.join("cgroup.procs");
        CString::new(path.as_os_str().as_bytes()).expect("a path of the kernel's has no NUL")
    }

    /// The most memory that was in use, bytes; `None` before Linux 5.19.
    pub fn memory_peak(&self) -> Option<u64> {
        let text = fs::read_to_string(self.dir.join("memory.peak")).ok()?;
        text.trim().parse().ok()
    }

    /// The memory in use, bytes.
    pub fn memory_now(&self) -> Option<u64> {
        let text = fs::read_to_string(self.dir.join("memory.current")).ok()?;
        text.trim().parse().ok()
    }

    /// Processes that the kernel has ended because memory was short.
    pub fn memory_kills(&self) -> u64 {
        let text = fs::read_to_string(self.dir.join("memory.events")).unwrap_or_default();
        let count = text
            .lines()
            .find_map(|line| line.strip_prefix("oom_kill "))
            .and_then(|count| count.trim().parse().ok());
        count.unwrap_or(0)
    }

    /// Ends all that is in it.
    pub fn kill(&self) {
        // Since Linux 5.14.
        if fs::write(self.dir.join("cgroup.kill"), "1").is_err() {
            for pid in pids(&self.dir) {
                // SAFETY: kill has no memory arguments; the group is ours alone.
                unsafe { libc::kill(pid as i32, libc::SIGKILL) };
            }
        }
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        // What has just been killed may take a moment to leave; a group left behind is used again.
        for _ in 0..50 {
            if fs::remove_dir(&self.dir).is_ok() || !self.dir.exists() {
                return;
            }
            std::thread::sleep(std::time::Duration::from_millis(20));
        }
    }
}

fn pids(dir: &Path) -> Vec<u32> {
    let text = fs::read_to_string(dir.join("cgroup.procs")).unwrap_or_default();
    text.lines().filter_map(|line| line.parse().ok()).collect()
}

/// This process, or one that it or its children have started.
fn is_ours(pid: u32) -> bool {
    let mut pid = pid;
    // No chain of processes is that long.
    for _ in 0..64 {
        if pid == std::process::id() {
            return true;
        }
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        let parent = stat
            .rsplit(')')
            .next()
            .and_then(|rest| rest.split_whitespace().nth(1)?.parse().ok());
        match parent {
            Some(parent) if parent > 1 => pid = parent,
            _ => return false,
        }
    }
    false
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A made-up hierarchy: files alone, as the kernel would have them.
    fn hierarchy(controllers: &str, pids: &str) -> tempfile::TempDir {
        let root = tempfile::tempdir().expect("a folder");
        let base = root.path().join("system.slice/hydrad.service");
        fs::create_dir_all(&base).expect("folders");
        for (name, text) in [
            ("cgroup.controllers", controllers),
            ("cgroup.procs", pids),
            ("cgroup.subtree_control", ""),
        ] {
            fs::write(base.join(name), text).expect("a file");
        }
        root
    }

    const OWN: &str = "12:memory:/x\n0::/system.slice/hydrad.service\n";

    #[test]
    fn a_delegated_group_is_divided_and_one_with_others_in_it_is_not() {
        let ours = |pid: u32| pid < 100;
        let root = hierarchy("cpu memory pids", "7\n8\n");
        let delegated = Delegated::below(root.path(), OWN, &ours).expect("usable");
        let delegated = delegated.expect("delegated");
        let base = root.path().join("system.slice/hydrad.service");
        let text = |name: &str| fs::read_to_string(base.join(name)).expect("written");
        assert_eq!(text("cgroup.subtree_control"), "+memory");
        assert_eq!(text("service/cgroup.procs"), "8");
        let group = delegated.group("eval-3", Some(1 << 30)).expect("a group");
        assert_eq!(text("eval-3/memory.max"), "1073741824");
        fs::write(
            base.join("eval-3/memory.events"),
            "low 0\noom 2\noom_kill 1\n",
        )
        .expect("made up");
        fs::write(base.join("eval-3/memory.peak"), "1073700000\n").expect("made up");
        assert_eq!(
            (group.memory_kills(), group.memory_peak()),
            (1, Some(1_073_700_000))
        );
        for (dir, max) in [("", "max\n"), ("/..", "4294967296\n")] {
            let file = root
                .path()
                .join(format!("system.slice/hydrad.service{dir}/memory.max"));
            fs::write(file, max).expect("made up");
        }
        assert_eq!(smallest_limit(root.path(), OWN), Some(4 << 30));
        for (controllers, pids, own) in [
            ("cpu memory", "7\n4711\n", OWN),
            ("cpu", "7\n", OWN),
            ("cpu memory", "7\n", "4:memory:/x\n"),
            ("cpu memory", "7\n", "0::/\n"),
        ] {
            let root = hierarchy(controllers, pids);
            let none = Delegated::below(root.path(), own, &ours).expect("no error");
            assert!(none.is_none(), "{controllers} {pids} {own}");
        }
    }

    #[test]
    fn a_process_of_our_own_is_ours() {
        assert!(is_ours(std::process::id()) && !is_ours(1));
    }
}
