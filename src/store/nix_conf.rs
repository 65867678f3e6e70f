//! What Nix's own configuration says of this host.

use std::process::Command;

/// `max-jobs` and `system-features`, asked of the installed Nix; nothing if it does not answer.
pub fn jobs_and_features() -> (Option<u32>, Vec<String>) {
    let output = Command::new("nix")
        .args([
            "--extra-experimental-features",
            "nix-command",
            "show-config",
        ])
        .stdin(std::process::Stdio::null())
        .output();
    let text = match output {
        Ok(output) if output.status.success() => {
            String::from_utf8_lossy(&output.stdout).into_owned()
        }
        Ok(output) => {
            log::debug!(
                "nix show-config: {}",
                String::from_utf8_lossy(&output.stderr).trim()
            );
            return (None, Vec::new());
        }
        Err(error) => {
            log::debug!("cannot start nix: {error}");
            return (None, Vec::new());
        }
    };
    let value = |key: &str| {
        text.lines().find_map(|line| {
            let (found, value) = line.split_once(" = ")?;
            (found == key).then(|| value.trim().to_owned())
        })
    };
    let features = value("system-features").unwrap_or_default();
    let jobs = value("max-jobs").and_then(|jobs| jobs.parse().ok());
    (
        jobs,
        features.split_whitespace().map(str::to_owned).collect(),
    )
}
