//! Whose rights a part of a test runs with.

use std::ffi::{CString, OsStr};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;

/// PostgreSQL refuses to run as root, and hydrad is meant to run without it, so tests started by root hand such parts to
/// the user `postgres` or, where there is none, `nobody`. For anybody else both variants are the user at the keyboard.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RunAs {
    Me,
    Unprivileged,
}

struct Account {
    name: String,
    uid: u32,
    gid: u32,
}

impl RunAs {
    /// A command that will run with these rights and an environment without traces of the machine's own Nix,
    /// PostgreSQL or Hydra.
    pub fn command(self, program: impl AsRef<OsStr>) -> Command {
        let mut command = Command::new(program);
        for (name, _) in std::env::vars_os() {
            let name_text = name.to_string_lossy();
            if ["NIX_", "PG", "HYDRA_", "STUB_"]
                .iter()
                .any(|p| name_text.starts_with(p))
                || name_text == "NOTIFY_SOCKET"
            {
                command.env_remove(&name);
            }
        }
        command.env("LC_ALL", "C.UTF-8");
        if let Some(account) = self.other() {
            command.uid(account.uid).gid(account.gid).current_dir("/");
            command
                .env("USER", &account.name)
                .env("LOGNAME", &account.name)
                .env("HOME", "/nonexistent");
        } else {
            command.env("LOGNAME", self.name());
        }
        command
    }

    pub fn name(self) -> String {
        self.other().unwrap_or_else(current).name
    }

    /// Make this user the owner of a file or directory.
    pub fn give(self, path: &Path) {
        let Some(account) = self.other() else { return };
        let c_path = CString::new(path.as_os_str().as_bytes()).expect("a path without NUL");
        // SAFETY: chown reads a NUL-terminated path that lives until it returns.
        let result = unsafe { libc::chown(c_path.as_ptr(), account.uid, account.gid) };
        assert_eq!(
            result,
            0,
            "chown {}: {}",
            path.display(),
            std::io::Error::last_os_error()
        );
    }

    /// Like [`RunAs::give`] for a whole tree.
    pub fn give_tree(self, path: &Path) {
        self.give(path);
        if path.is_dir() && !path.is_symlink() {
            for entry in std::fs::read_dir(path)
                .expect("read a directory of our own")
                .flatten()
            {
                self.give_tree(&entry.path());
            }
        }
    }

    /// The account to change to, if it is another one than ours.
    fn other(self) -> Option<Account> {
        if self == RunAs::Me || !is_root() {
            return None;
        }
        let account = ["postgres", "nobody"].into_iter().find_map(lookup);
        Some(account.expect(
            "neither the user postgres nor nobody exists; `apt install postgresql` makes the first",
        ))
    }
}

pub fn is_root() -> bool {
    // SAFETY: geteuid has no preconditions.
    unsafe { libc::geteuid() == 0 }
}

fn current() -> Account {
    // SAFETY: getuid and getgid have no preconditions.
    let (uid, gid) = unsafe { (libc::getuid(), libc::getgid()) };
    let name = passwd_fields(|fields| fields[2] == uid.to_string())
        .map_or_else(|| uid.to_string(), |f| f[0].clone());
    Account { name, uid, gid }
}

fn lookup(name: &str) -> Option<Account> {
    let fields = passwd_fields(|fields| fields[0] == name)?;
    Some(Account {
        name: name.into(),
        uid: fields[2].parse().ok()?,
        gid: fields[3].parse().ok()?,
    })
}

fn passwd_fields(wanted: impl Fn(&[String]) -> bool) -> Option<Vec<String>> {
    let text = std::fs::read_to_string("/etc/passwd").ok()?;
    text.lines()
        .map(|line| line.split(':').map(String::from).collect::<Vec<_>>())
        .find(|f| f.len() >= 4 && wanted(f))
}
