//! git as evaluations start it, themselves and through Nix: without asking, and without starting what a repository names.

use std::process::Command;

/// Whatever a repository of an input says, these stand.
const SETTINGS: [(&str, &str); 2] = [("core.fsmonitor", "false"), ("core.hooksPath", "/dev/null")];

/// The command obeys if it is git, and so do its children that are git. Restricted evaluation may read a repository that came as an input, and git would
/// run the programs that its configuration names, outside of any sandbox.
pub fn with_harmless_git(command: &mut Command) -> &mut Command {
    // Those of our own environment come first and stay.
    let given = std::env::var("GIT_CONFIG_COUNT").ok();
    let given: usize = given.and_then(|n| n.parse().ok()).unwrap_or(0);
    for (number, (key, value)) in (given..).zip(SETTINGS) {
        command.env(format!("GIT_CONFIG_KEY_{number}"), key);
        command.env(format!("GIT_CONFIG_VALUE_{number}"), value);
    }
    command
        .env("GIT_CONFIG_COUNT", (given + SETTINGS.len()).to_string())
        .env("GIT_TERMINAL_PROMPT", "0")
}
