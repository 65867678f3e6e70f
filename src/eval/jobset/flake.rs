//! A flake locked to one revision, by whatever Nix is installed.

use std::process::Command;
use std::time::Duration;

use serde_json::Value;

use crate::base::text;
use crate::eval::harmless::with_harmless_git;
use crate::eval::inputs;
use crate::sys::child;

/// Locking, which may fetch, takes this long at most.
const LOCK_MAX: Duration = Duration::from_secs(600);
/// Nix's words are told up to this length, bytes.
const WORDS_MAX: usize = 16 << 10;

/// The locked address of a flake, newly looked up.
///
/// # Errors
/// What went wrong, fit for the jobset's error: without passwords and tokens.
pub fn lock(flake: &str) -> Result<String, String> {
    let mut command = Command::new("nix");
    command
        .args(["--extra-experimental-features", "nix-command flakes"])
        // What the flake's lock file lacks is not written into somebody's folder.
        .args(["flake", "metadata", "--refresh", "--no-write-lock-file"])
        .args(["--json", "--", flake]);
    with_harmless_git(&mut command);
    let failed = |why: String| cannot_lock(flake, &why);
    let end = child::capture(child::ends_with_thread(&mut command), LOCK_MAX, &|| false)
        .map_err(|error| failed(child::describe_trouble("nix", &error)))?;
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

/// Nix's words, too, name the flake.
fn cannot_lock(flake: &str, why: &str) -> String {
    let why = inputs::without_secrets_of_flake(flake, why);
    format!("cannot lock flake ‘{}’: {why}", inputs::shown_flake(flake))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_has_no_password() {
        let error = cannot_lock(
            "git+http://alice:s3cr3t@h/r?ref=main",
            "fatal: unable to access 'http://alice:s3cr3t@h/r/'",
        );
        assert_eq!(
            error,
            "cannot lock flake ‘git+http://***@h/r?ref=main’: fatal: unable to access 'http://***@h/r/'"
        );
    }
}
