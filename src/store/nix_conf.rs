//! What Nix's own configuration says of this host.

use std::process::Command;

use crate::config::machines::LocalHost;

/// The experimental feature that content-addressed derivations need, also required of their machines.
const CA_DERIVATIONS: &str = "ca-derivations";

/// This host as a machine, as the installed Nix is configured: `max-jobs`, `system-features`, `extra-platforms`. If
/// Nix does not answer: by its CPU, one slot for each, and no features.
pub fn local_host() -> LocalHost {
    let said = show_config();
    let value = |key: &str| {
        said.lines().find_map(|line| {
            let (found, value) = line.split_once(" = ")?;
            (found == key).then(|| value.trim().to_owned())
        })
    };
    let words = |key: &str| -> Vec<String> {
        let words = value(key).unwrap_or_default();
        words.split_whitespace().map(str::to_owned).collect()
    };
    let max_jobs = value("max-jobs").and_then(|jobs| jobs.parse().ok());
    let content_addressed = words("experimental-features")
        .iter()
        .any(|feature| feature == CA_DERIVATIONS);
    let mut features = words("system-features");
    if content_addressed && !features.iter().any(|feature| feature == CA_DERIVATIONS) {
        features.push(CA_DERIVATIONS.to_owned());
    }
    let mut host = LocalHost::of_this_host(max_jobs, features);
    host.content_addressed = content_addressed;
    host.extra_platforms = words("extra-platforms");
    host
}

/// What `nix show-config` prints; nothing if it does not work.
fn show_config() -> String {
    let output = Command::new("nix")
        .args([
            "--extra-experimental-features",
            "nix-command",
            "show-config",
        ])
        .stdin(std::process::Stdio::null())
        .output();
    match output {
        Ok(output) if output.status.success() => {
            String::from_utf8_lossy(&output.stdout).into_owned()
        }
        Ok(output) => {
            let words = String::from_utf8_lossy(&output.stderr);
            log::debug!("nix show-config: {}", words.trim());
            String::new()
        }
        Err(error) => {
            log::debug!("cannot start nix: {error}");
            String::new()
        }
    }
}
