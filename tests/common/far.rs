//! A build machine behind a real sshd, with a store of its own under the logical directory of another one.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use super::{NixStore, RunAs, SecondStore, SshConfig, Sshd, TestDir};

pub struct FarMachine {
    pub store: SecondStore,
    config: SshConfig,
    sshd: Sshd,
    dir: TestDir,
}

impl FarMachine {
    /// The machine `alias` for the farm that uses `store`.
    pub fn new(store: &NixStore, alias: &str) -> FarMachine {
        let far = SecondStore::new(store.store_dir(), RunAs::Me);
        let words: Vec<String> = far
            .prefix()
            .iter()
            .map(|word| format!("'{word}'"))
            .collect();
        let dir = TestDir::new(RunAs::Me);
        let text = format!(
            "#!/bin/sh\nexec {} {} \"$@\"\n",
            words.join(" "),
            nix_store()
        );
        let program = dir.join("nix-store");
        fs::write(&program, text).unwrap();
        fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).unwrap();
        let path = format!(
            "{}:{}",
            dir.path().display(),
            std::env::var("PATH").unwrap()
        );
        let sshd = Sshd::start(&[("PATH".into(), path)]);
        let mut config = SshConfig::new(store.owner());
        config.add(alias, &sshd);
        FarMachine {
            store: far,
            config,
            sshd,
            dir,
        }
    }

    /// What hydrad needs in its environment to reach it.
    pub fn env(&self) -> Vec<(String, String)> {
        vec![("NIX_SSHOPTS".into(), self.config.nix_sshopts())]
    }
}

/// The real program, wherever PATH has it.
fn nix_store() -> String {
    let path = std::env::var("PATH").unwrap();
    let dirs = path.split(':').map(|dir| Path::new(dir).join("nix-store"));
    let found: Option<PathBuf> = dirs.into_iter().find(|file| file.is_file());
    found.expect("nix-store is installed").display().to_string()
}
