//! Build machines that cost nothing: `ssh` (and, if wanted, `nix-store`) replaced by tests/stub-builder.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

use super::process::{eventually, output_of};
use super::{RunAs, TestDir};

/// A directory for the front of PATH, the stubs' knobs and their log. Every host name is a machine.
pub struct StubBuilders {
    dir: TestDir,
    user: RunAs,
}

impl StubBuilders {
    /// `ssh` is a stub; `nix-store`, and so the machine localhost, stays real.
    pub fn new(user: RunAs) -> StubBuilders {
        let dir = TestDir::new(user);
        for name in ["bin", "knobs"] {
            dir.sub(name, user);
        }
        let stub = dir.join("bin/ssh");
        if std::fs::hard_link(stub_program(), &stub).is_err() {
            std::fs::copy(stub_program(), &stub).expect("copy the stub builder");
        }
        StubBuilders { dir, user }
    }

    /// Let the machine localhost be a stub as well. The program under test then has no `nix-store` at all.
    pub fn with_localhost(self) -> Self {
        std::os::unix::fs::symlink("ssh", self.dir.join("bin/nix-store")).expect("make a symlink");
        self
    }

    /// The environment for the program that starts the stubs.
    pub fn env(&self) -> Vec<(String, String)> {
        let path = std::env::var("PATH").unwrap_or_default();
        vec![
            (
                "PATH".into(),
                format!("{}:{path}", self.dir.join("bin").display()),
            ),
            (
                "STUB_DIR".into(),
                self.dir.join("knobs").to_string_lossy().into_owned(),
            ),
            (
                "STUB_LOG".into(),
                self.log_path().to_string_lossy().into_owned(),
            ),
        ]
    }

    pub fn program(&self) -> PathBuf {
        self.dir.join("bin/ssh")
    }

    /// A machines file with m1 to m`count`, each with so many slots.
    pub fn machines(&self, count: usize, slots: usize) -> String {
        (1..=count)
            .map(|n| format!("m{n} x86_64-linux - {slots} 1 - -\n"))
            .collect()
    }

    /// Set the knobs of a host (`all` for every one), e.g. `&[("seconds", "3"), ("fault", "hang-in-valid@1")]`.
    /// Running stubs see it the next time they look.
    pub fn set(&self, host: &str, knobs: &[(&str, &str)]) {
        let text: String = knobs
            .iter()
            .map(|(name, value)| format!("{name}={value}\n"))
            .collect();
        let new = self.dir.file("knobs.new", &text, self.user);
        std::fs::rename(new, self.dir.join("knobs").join(host))
            .expect("put the knobs in their place");
        let _ = std::fs::remove_file(self.dir.join("knobs").join(format!("{host}.hits")));
    }

    /// What the stubs did so far: `(host, pid, event, detail)`.
    pub fn events(&self) -> Vec<(String, u32, String, String)> {
        let log = std::fs::read_to_string(self.log_path()).unwrap_or_default();
        log.lines()
            .filter_map(|line| {
                let mut words = line.splitn(4, ' ');
                let (host, pid, event) =
                    (words.next()?, words.next()?.parse().ok()?, words.next()?);
                Some((
                    host.into(),
                    pid,
                    event.into(),
                    words.next().unwrap_or("").into(),
                ))
            })
            .collect()
    }

    /// Wait until a host had an event whose detail contains `detail`.
    pub fn wait_event(&self, host: &str, event: &str, detail: &str) {
        eventually(&format!("{event} {detail} on the stub {host}"), || {
            self.events()
                .iter()
                .any(|(h, _, e, d)| h == host && e == event && d.contains(detail))
                .then_some(())
        });
    }

    fn log_path(&self) -> PathBuf {
        self.dir.join("log")
    }
}

/// cargo builds it beside the tests, but not when only one of them was asked for.
fn stub_program() -> &'static Path {
    static PROGRAM: OnceLock<PathBuf> = OnceLock::new();
    PROGRAM.get_or_init(|| {
        let source =
            Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/stub-builder/stub-builder.rs");
        let modified = |path: &Path| std::fs::metadata(path).and_then(|m| m.modified()).ok();
        let target = Path::new(env!("CARGO_BIN_EXE_hydrad"))
            .parent()
            .expect("a program lies in a directory");
        let built = target.join("examples/stub-builder");
        if modified(&built)
            .is_none_or(|time| modified(&source).is_some_and(|source_time| source_time > time))
        {
            let mut cargo = Command::new(std::env::var("CARGO").unwrap_or_else(|_| "cargo".into()));
            cargo.current_dir(env!("CARGO_MANIFEST_DIR"));
            let target_dir = target
                .parent()
                .expect("a profile lies in the target directory");
            cargo
                .args([
                    "build",
                    "--quiet",
                    "--example",
                    "stub-builder",
                    "--target-dir",
                ])
                .arg(target_dir);
            if target.ends_with("release") {
                cargo.arg("--release");
            }
            output_of(&mut cargo);
        }
        built
    })
}
