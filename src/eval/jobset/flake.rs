//! A flake locked to one revision, by whatever Nix is installed.

use std::process::Command;
use std::time::Duration;

use serde_json::Value;

use crate::base::text;
use crate::sys::child;

/// Locking, which may fetch, takes this long at most.
const LOCK_MAX: Duration = Duration::from_secs(600);
/// Nix's words are told up to this length, bytes.
const WORDS_MAX: usize = 16 << 10;

/// The locked address of a flake, newly looked up.
///
/// # Errors
/// What went wrong, fit for the jobset's error.
pub fn lock(flake: &str) -> Result<String, String> {
    let mut command = Command::new("nix");
    command
        .args(["--extra-experimental-features", "nix-command flakes"])
        // What the flake's lock file lacks is not written into somebody's folder.
        .args(["flake", "metadata", "--refresh", "--no-write-lock-file"])
        .args(["--json", "--", flake]);
    let failed = |why: String| format!("cannot lock flake ‘{flake}’: {why}");
    let end = child::capture(child::ends_with_thread(&mut command), LOCK_MAX, &|| false)
        .map_err(|error| failed(format!("cannot start nix: {}", child::plain_error(&error))))?;
    if end.late {
        let secs = LOCK_MAX.as_secs();
        return Err(failed(format!(
            "nix flake metadata took longer than {secs} s"
        )));
    }
    if !end.status.is_some_and(|status| status.success()) {
        let how = end
            .status
            .map_or_else(|| "it did not end".to_owned(), child::describe_status);
        let words = text::presentable(end.words.as_bytes(), WORDS_MAX);
        return Err(failed(format!("nix flake metadata: {how}\n{words}")));
    }
    let answer: Option<Value> = serde_json::from_slice(&end.output).ok();
    answer
        .and_then(|answer| Some(answer.get("url")?.as_str()?.to_owned()))
        .ok_or_else(|| failed("nix flake metadata gave no JSON with a `url`".to_owned()))
}
